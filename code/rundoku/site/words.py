"""The words of the site's own parts in three languages, from ``words.yml`` beside this file."""

from functools import cache
from pathlib import Path

import yaml


@cache
def _words() -> dict[str, dict[str, str]]:
    return yaml.safe_load(Path(__file__).with_name("words.yml").read_text(encoding="utf-8"))


def word(language: str, key: str) -> str:
    """Return the site's word for ``key`` in a language. Raises KeyError naming the key that words.yml lacks."""
    words = _words()
    if key not in words or language not in words[key]:
        raise KeyError(f"words.yml has no {key!r} in {language!r}")
    return words[key][language]
