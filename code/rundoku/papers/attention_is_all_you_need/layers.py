"""Encoder and decoder: stacks of attention and feed-forward sub-layers, each LayerNorm(x + Dropout(Sublayer(x))) (§3.1)."""

from torch import Tensor, nn

from rundoku.papers.attention_is_all_you_need.attention import MultiHeadAttention, causal_mask
from rundoku.papers.attention_is_all_you_need.config import TransformerConfig
from rundoku.papers.layer_norm import LayerNorm


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between, the same at every position (Eq. 2)."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return max(0, xW₁ + b₁)W₂ + b₂, [B, N, C] -> [B, N, C]."""
        return self.outer(self.inner(x).relu())


class Residual(nn.Module):
    """What surrounds every sub-layer: dropout, the residual sum, then normalization (§3.1, §5.4)."""

    def __init__(self, d_model: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = LayerNorm(d_model)

    def forward(self, x: Tensor, sublayer_output: Tensor) -> Tensor:
        """Return LayerNorm(x + Dropout(Sublayer(x))), [B, N, C]; this order is called post-LN."""
        return self.norm(x + self.dropout(sublayer_output))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward (Fig. 1, left)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = MultiHeadAttention(config.d_model, config.n_heads, config.d_k, config.d_v)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.residuals = nn.ModuleList(Residual(config.d_model, config.dropout) for _ in range(2))

    def forward(self, x: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Return [B, M, C] from x [B, M, C]; `source_mask` [B, 1, 1, M] is True at tokens that are no padding."""
        x = self.residuals[0](x, self.self_attention(x, x, x, source_mask))
        return self.residuals[1](x, self.feed_forward(x))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder's output, then feed-forward (Fig. 1, right)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = MultiHeadAttention(config.d_model, config.n_heads, config.d_k, config.d_v)
        self.cross_attention = MultiHeadAttention(config.d_model, config.n_heads, config.d_k, config.d_v)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.residuals = nn.ModuleList(Residual(config.d_model, config.dropout) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, target_mask: Tensor | None = None, source_mask: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from x [B, N, C] and memory [B, M, C], with the masks [N, N] and [B, 1, 1, M], True = allowed."""
        # --8<-- [start:decoder-layer]
        x = self.residuals[0](x, self.self_attention(x, x, x, target_mask))
        x = self.residuals[1](x, self.cross_attention(x, memory, memory, source_mask))
        return self.residuals[2](x, self.feed_forward(x))
        # --8<-- [end:decoder-layer]


class Encoder(nn.Module):
    """L encoder layers."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))

    def forward(self, x: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Return the memory [B, M, C] of the embedded source x [B, M, C]."""
        for layer in self.layers:
            x = layer(x, source_mask)
        return x


class Decoder(nn.Module):
    """L decoder layers, in which no position sees a later one."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))

    def forward(self, x: Tensor, memory: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from the embedded target x [B, N, C] and the memory [B, M, C]."""
        target_mask = causal_mask(x.shape[-2], x.device)
        for layer in self.layers:
            x = layer(x, memory, target_mask, source_mask)
        return x
