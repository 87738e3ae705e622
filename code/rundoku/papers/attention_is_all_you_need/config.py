"""The sizes of a Transformer, and the two of the paper."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a Transformer; the defaults are the base model of Table 3."""

    vocab_size: int = 37_000  # V: tokens that source and target share (§5.1)
    n_layers: int = 6  # L: layers of the encoder, and again of the decoder
    d_model: int = 512  # C: width of everything between the layers
    d_ff: int = 2048  # F: inner width of the feed-forward networks
    n_heads: int = 8  # H
    d_k: int | None = None  # width of a query and key head; d_model/n_heads unless given
    d_v: int | None = None  # width of a value head; d_model/n_heads unless given
    dropout: float = 0.1  # on the output of every sub-layer and on embeddings + positions (§5.4)
    pad: int = 0  # token that fills a batch up; never attended to, never trained on
    bos: int = 1  # token that the decoder starts from
    eos: int = 2  # token that ends a sentence


BASE = TransformerConfig()
BIG = TransformerConfig(d_model=1024, d_ff=4096, n_heads=16, dropout=0.3)
