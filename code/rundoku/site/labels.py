"""The words in figures and tables: their captions, alternative texts and labels in three languages."""

import re
import string
from dataclasses import dataclass, field
from pathlib import Path

from rundoku.site.fields import LANGUAGES, CatalogueError, Field, read

_COMMAS = {"en": ", ", "ja": "、", "zh": "，"}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
NUMBER = rf"[-+−±≈~]?\d+(?:[,\u202f]\d{{3}})*(?:\.\d+)?(?:[eE][-+−]?\d+|[{_SUPERSCRIPTS}]+)?(?:[kKMGBT]\b)?%?"
_UNITS = r"[kKMGTP]i?B(?:/s)?|B/s|[nµm]?s|min|h|dB|k?Hz|[MGTP]?FLOP(?:/s|s)?|FLOP/B|px|[kKMGBT]|bf16|fp(?:8|16|32|64)|int[48]"
# One letter with its index is a symbol, not a word; so is a name of code: torch.nn.Linear, num_warps, gfx942, 64x64.
_SYMBOL = rf"[A-Za-zͰ-Ͽ](?:_?\d+|[{_SUBSCRIPTS}{_SUPERSCRIPTS}ₖₙᵢⱼᵥ]+)?"
_CODE = r"[A-Za-z_]\w*(?:\.\w+)+|[A-Za-z]+_\w+|[A-Za-z]+\d\w*|\d+(?:x\d+)+"
_SYMBOLIC = re.compile(rf"(?>(?<![^\W_])(?:{_CODE})(?![^\W_])|{NUMBER}|(?<![^\W_])(?:{_UNITS}|{_SYMBOL})(?![^\W_])|[^\w]|_)*+", re.ASCII)


def is_symbolic(label: str) -> bool:
    """Whether a label holds only what no language translates: numbers, units, symbols, names of code, data in another script."""
    return _SYMBOLIC.fullmatch(label) is not None


def _placeholders(text: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def _pattern(label: str) -> re.Pattern[str]:
    return re.compile(f"({NUMBER})".join(re.escape(part) for part in label.split("{}")))


@dataclass(frozen=True)
class _Words:
    caption: dict[str, str]
    alt: dict[str, str] | None


@dataclass
class Labels:
    """What stands in one note's figures and tables, by language."""

    file: str
    shown: dict[tuple[str, str], _Words] = field(default_factory=dict)
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    patterns: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    keep: set[str] = field(default_factory=set)

    def names(self, kind: str) -> tuple[str, ...]:
        """The figures (`kind="figure"`) or tables (`kind="table"`) that have words."""
        return tuple(name for found, name in self.shown if found == kind)

    def caption(self, kind: str, name: str, language: str) -> str:
        """The caption of a figure or table; it may hold `{value:format}`."""
        return self._shown(kind, name).caption[language]

    def alt(self, name: str, language: str) -> str:
        """A figure's alternative text; it may hold `{value:format}`."""
        alt = self._shown("figure", name).alt
        assert alt is not None, "a figure without alternative text does not load"
        return alt[language]

    def _shown(self, kind: str, name: str) -> _Words:
        if (kind, name) not in self.shown:
            raise CatalogueError(f"{self.file}: {kind}s.{name}: found nothing, expected the words of the {kind} {name!r}")
        return self.shown[kind, name]

    def translate(self, text: str, language: str) -> str:
        """A label in `language`; CatalogueError names the label that has no translation, also when English is asked for."""
        label = text.strip()
        found = self.words.get(label)
        if found is not None:
            return label if language == "en" else found[language]
        if label in self.keep or is_symbolic(label):
            return label
        for pattern, template in self.patterns:
            match = pattern.fullmatch(label)
            if match:
                return label if language == "en" else self.words[template][language].format(*match.groups())
        missing = CatalogueError(f"{self.file}: labels: found no translation of {label!r}, expected it under `labels`, or under `keep`")
        if ", " not in label:
            raise missing
        try:
            return _COMMAS[language].join(self.translate(part, language) for part in label.split(", "))
        except CatalogueError:
            raise missing from None

    def _add_words(self, source: Field) -> None:
        given = source.record((), ("figures", "tables", "labels", "keep"))
        for kind, required in (("figure", ("caption", "alt")), ("table", ("caption",))):
            for name, entry in given[f"{kind}s"].mapping().items() if f"{kind}s" in given else ():
                parts = {part: _agreeing(text) for part, text in entry.record(required).items()}
                self.shown[kind, name] = _Words(parts["caption"], parts.get("alt"))
        for label, entry in given["labels"].mapping().items() if "labels" in given else ():
            self._add_label(label, entry)
        self.keep.update(given["keep"].texts() if "keep" in given else ())

    def _add_label(self, label: str, entry: Field) -> None:
        wanted = sorted(str(number) for number in range(label.count("{}")))
        translations = entry.languages(LANGUAGES[1:])
        for language, text in translations.items():
            names = _names_of(entry.child(language, text))
            automatic = [str(number) for number in range(len(names))]
            if sorted(automatic if not any(names) else names) != wanted:
                entry.child(language, text).fail(f"the {len(wanted)} number(s) of {label!r}, as {{}} or as {{0}}, {{1}}")
        # A note's own wording goes before the common one.
        self.words[label] = translations
        if wanted:
            self.patterns.insert(0, (_pattern(label), label))


def _names_of(text: Field) -> list[str]:
    try:
        return _placeholders(text.value)
    except ValueError as error:
        text.fail(f"braces that close ({error})")


def _agreeing(entry: Field) -> dict[str, str]:
    texts = entry.languages()
    english = sorted(_names_of(entry.child("en", texts["en"])))
    for language, text in texts.items():
        if sorted(_names_of(entry.child(language, text))) != english:
            entry.child(language, text).fail(f"the same values as in English ({', '.join(english) or 'none'})")
    return texts


def load_labels(root: Path, slug: str) -> Labels:
    """The labels of a note: the common ones of `notes/labels.yml`, then the note's own, where it has any; without a slug those of docs/."""
    own = f"notes/{slug}/labels.yml" if slug else "notes/pages.yml"
    labels = Labels(own)
    labels._add_words(read(root, "notes/labels.yml"))
    if (root / own).exists():
        labels._add_words(read(root, own))
    return labels
