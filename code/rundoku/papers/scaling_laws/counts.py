"""Parameters and floating-point operations of a decoder-only Transformer, as Table 1 of the paper counts them."""

from dataclasses import dataclass
from typing import NamedTuple

PF_DAY = 1e15 * 24 * 3600  # floating-point operations in a petaflop/s-day, the paper's unit of compute (§1.3)


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a decoder-only Transformer; raises ValueError for a size below 1, or heads that do not divide the attention's width."""

    vocab_size: int  # n_vocab
    n_ctx: int  # tokens in a context
    n_layers: int  # n_layer
    d_model: int  # width of the residual stream
    n_heads: int = 1
    d_attn: int | None = None  # width of all heads together; d_model unless given
    d_ff: int | None = None  # inner width of the feed-forward network; 4·d_model unless given

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_ctx", "n_layers", "d_model", "n_heads", "attention_width", "feed_forward_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; expected 1 or more")
        if self.attention_width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} does not divide the attention's width {self.attention_width}; expected a divisor")

    @property
    def attention_width(self) -> int:
        """d_attn, with its default."""
        return self.d_model if self.d_attn is None else self.d_attn

    @property
    def feed_forward_width(self) -> int:
        """d_ff, with its default."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff


class Count(NamedTuple):
    """One row of Table 1."""

    parameters: int
    flops: int  # of a forward pass, for each token; two for a multiplication with its addition


# --8<-- [start:table-1]
def table_1(config: DecoderConfig) -> dict[str, Count]:
    """Return the rows of Table 1; biases, norms and nonlinearities are left out, as there."""
    layers, width, attention = config.n_layers, config.d_model, config.attention_width
    qkv, project = layers * width * 3 * attention, layers * attention * width
    feed_forward = layers * 2 * width * config.feed_forward_width
    return {
        "Embed": Count((config.vocab_size + config.n_ctx) * width, 4 * width),
        "Attention: QKV": Count(qkv, 2 * qkv),
        "Attention: Mask": Count(0, 2 * layers * config.n_ctx * attention),
        "Attention: Project": Count(project, 2 * project),
        "Feedforward": Count(feed_forward, 2 * feed_forward),
        "De-embed": Count(0, 2 * width * config.vocab_size),
    }
    # --8<-- [end:table-1]


EMBEDDING = ("Embed", "De-embed")  # the rows that N and C leave out


def parameters(config: DecoderConfig, embedding: bool = False) -> int:
    """Return N = 2·d_model·n_layer·(2·d_attn + d_ff), or with ``embedding`` the parameters of the embeddings as well."""
    return sum(count.parameters for row, count in table_1(config).items() if embedding or row not in EMBEDDING)


def training_flops(config: DecoderConfig, tokens: float, context: bool = False) -> float:
    """Return C = 6·N·D for a training on ``tokens`` tokens; ``context`` adds Table 1's attention term, 6·n_layer·n_ctx·d_attn a token.

    The backward pass is taken as twice the forward pass (§2.1).
    """
    rows = {row: count.flops for row, count in table_1(config).items() if row not in EMBEDDING}
    return 3.0 * tokens * sum(flops for row, flops in rows.items() if context or row != "Attention: Mask")
