"""The sizes of a LLaMA, and the four of the paper."""

from dataclasses import dataclass

from rundoku.papers.glu_variants import two_thirds


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a LLaMA. Raises ValueError where they do not fit together."""

    vocab_size: int  # V
    d_model: int  # C: width of everything between the blocks
    n_layers: int  # L
    n_heads: int  # H: query heads
    n_kv_heads: int  # G: key and value heads; H in this paper, fewer in its successors
    d_ff: int  # F: inner width of the feed-forward networks
    d_head: int  # D: width of one head, C/H in this paper
    norm_eps: float = 1e-5  # below the root of RMSNorm
    rope_base: float = 10_000.0  # the slowest rotary frequency is about 1/base
    max_length: int = 2048  # the longest sequence, cached tokens included
    tied: bool = False  # does the head share the embedding's weight?

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "d_head", "max_length"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name}: got {size}; expected at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads: {self.n_kv_heads} does not divide n_heads = {self.n_heads}; expected a divisor")
        if self.d_head % 2:
            raise ValueError(f"d_head: got {self.d_head}; expected an even number, since rotary positions turn pairs")


# --8<-- [start:sizes]
def _size(d_model: int, n_heads: int, n_layers: int) -> LlamaConfig:
    """Return a row of Table 2; 4·C·2/3 is rounded up to a multiple of 256, as in the authors' code."""
    d_ff, d_head = two_thirds(4 * d_model, multiple_of=256), d_model // n_heads
    return LlamaConfig(32_000, d_model, n_layers, n_heads, n_heads, d_ff, d_head)


LLAMA_7B = _size(d_model=4096, n_heads=32, n_layers=32)
LLAMA_13B = _size(d_model=5120, n_heads=40, n_layers=40)
LLAMA_33B = _size(d_model=6656, n_heads=52, n_layers=60)
LLAMA_65B = _size(d_model=8192, n_heads=64, n_layers=80)
# --8<-- [end:sizes]
