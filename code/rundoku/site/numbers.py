"""Finds the numbers that somebody typed into a note's prose, where a published value, a quoted fact or a formula should stand."""

import re
from collections.abc import Iterable
from functools import lru_cache

from rundoku.site.markdown import prose

_WIDE = str.maketrans("０１２３４５６７８９．％－", "0123456789.%-")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ID = r"[A-Z]?\.?\d+(?:\.\d+)*[a-z]?(?![\d%％×]|[.,]\d)"

# What is not prose, or not a number: kept out before anything is looked for.
_NOT_PROSE = re.compile(
    r"""(?<=\])\((?:[^()\s]|\([^()]*\))*(?:\s+"[^"]*")?\)     # a link's target
    | ^[ ]*\[[^\]]+\]:[ ]*\S+                                 # a link's target, given below
    | https?://[^\s)>]+ | <[^<>\n]+> | &\#?\w+;
    | \{:?[ ]*[.\#][^{}\n]*\} | \[\^[^\]]+\]
    | ^[ ]*\d+[.)](?=[ ])                                     # a list's own numbers
    | (?<![\w.,-])\d{4}-\d\d-\d\d(?!\d)                       # a date
    """,
    re.VERBOSE | re.MULTILINE,
)

# Numbers that name something. A word before the number says what it is.
_REFERENCES = (
    r"\b(?i:Eqs?|Equations?|Figs?|Figures?|Tables?|Tabs?|Sections?|Secs?|Algs?|Algorithms?|Theorems?|Lemmas?|Corollar(?:y|ies)"
    r"|Propositions?|Definitions?|Remarks?|Appendi(?:x|ces)|Chapters?|Pages?|pp?(?=\.)|Lines?|Rows?)\b\.?",
    r"§{1,2}",
    r"(?:図表|図|图|(?<![代発发列])表|(?<![形方様程])式|算法|アルゴリズム|定理|補題|引理|命題|命题|系|推论|定義|定义|付録|附录|脚注|第)",
)
_PLACES = "節|小?节|章|ページ|页"
_REFERENCE = re.compile(
    rf"""(?:{"|".join(_REFERENCES)})[ \u00a0]*[(（]?{_ID}[)）]?
    (?:[ ]*(?:,|、|，|and|&|or|to|[-–〜～・]|から|和|及|至|到)[ ]*[(（]?{_ID}[)）]?)*
    | \d+(?:\.\d+)*[ ]?(?:{_PLACES}) | [(（]\d+[)）][ ]?式""",
    re.VERBOSE,
)
_ORDINAL = re.compile(rf"第[ ]*+(\d[\d.]*+)[ ]*+(?!{_PLACES}|行|列)")  # 第3層 counts something, 第3節 is a place
_MODELS = r"Llama|LLaMA|GPT-\d|GPT|Motif|Gemma|Qwen|Mistral|Phi|Pythia|PaLM|OPT|BLOOM|Gopher|Chinchilla|DeepSeek|SmolLM2?|T5|ViT"
_TOOLS = r"Python|PyTorch|Triton|CUDA|ROCm|RTX|Apache|BY(?:-SA)?|IEEE|ISO|Unicode|Transformer|torch|triton|numpy|matplotlib"
_NAMES = re.compile(
    rf"""(?<![\w.])(?:{_MODELS})(?:[ ]\d+(?:\.\d+)?)?[ ]\d+(?:\.\d+)?[BM]\b   # Llama 2 70B
    | (?<![\w.])(?:{_MODELS}|{_TOOLS})[ ]\d+(?:\.\d+)*[A-Za-z]*\b             # Python 3.11
    | arxiv\.org/abs/\S+ | arXiv:?[ ]?\d{{4}}\.\d{{4,5}}(?:v\d+)?
    | (?<![\w-])(?:top|utf|sha|iso|x86)-\d+ | (?<=[ℓ\u0391-\u03c9])\d
    | (?<![\d.,A-Za-z])[A-Z][A-Za-z]*(?:[-–_./+]?[A-Za-z0-9]+)*        # GPT-2, H100, SmolLM2-135M
    | (?<![\d.,A-Za-z])[a-z][A-Za-z_]*\d[A-Za-z0-9_]*(?:\.\d+)*         # fp32, sm_90, cl100k
    | (?<![\w.,])[1-4]-?[dD]\b
    | (?<![\w.,])(?:1|2|3|4|8|16|32|64)(?:-bit\b|[ ]?ビット|[ ]?比特|位(?!置))
    """,
    re.VERBOSE | re.ASCII,
)
_YEAR = r"(?<![\d.,])(?:19[5-9]\d|20[0-2]\d)"
_COUNTED = (
    r"(?:tokens?|steps?|words?|examples?|samples?|parameters?|updates?|characters?|sentences?"
    r"|iterations?|epochs?|bytes?|bits|times|points?)"
)
_YEARS = {
    "en": re.compile(rf"{_YEAR}s?(?![\d%A-Za-z]|[.,]\d|[-– ]+(?:[a-z]+[ ])?{_COUNTED}\b)"),
    "ja": re.compile(rf"{_YEAR}[ ]?年|(?<=[(（]){_YEAR}(?=[)）])|(?<=[A-Za-z.,、，][ ]){_YEAR}(?=[)）,、。])"),
}
_YEARS["zh"] = _YEARS["ja"]


@lru_cache(maxsize=4)
def _titles(titles: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the titles that hold a digit, and their words that mix digits and letters (2-Simplicial, 16x16)."""
    whole = [title for title in titles if re.search(r"\d", title)]
    words = {word for title in whole for word in re.findall(r"[\w.-]*\d[\w.-]*", title) if re.search(r"[A-Za-z]", word)}
    names = sorted({*whole, *words}, key=lambda name: (-len(name), name))
    return re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, names))})(?!\w)" if names else r"(?!)", re.IGNORECASE)


def typed_numbers(text: str, language: str, titles: Iterable[str] = ()) -> list[tuple[int, str]]:
    """Line and number of each defect in Markdown `text`; `titles` are the papers' titles, which may be written anywhere."""
    left = prose(text).translate(_WIDE)
    heading = re.search(r"^# .*$", left, re.MULTILINE)  # a note's own title is its paper's
    if heading:
        left = left[: heading.start()] + " " * len(heading[0]) + left[heading.end() :]
    left = _NOT_PROSE.sub(_blanked, left)
    left = _titles(tuple(titles)).sub(_blanked, left)
    left = _ORDINAL.sub(lambda match: " " + match[0][1:], left)
    for pattern in (_REFERENCE, _YEARS[language], _NAMES):
        left = pattern.sub(_blanked, left)
    return [(left.count("\n", 0, match.start()) + 1, match[0]) for match in _NUMBER.finditer(left)]


def _blanked(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
