"""The model that is scaled: a decoder-only Transformer with normalization before every sub-layer, as in GPT-2.

Axes: B batch, N length, C model width, V vocabulary.
"""

from torch import Tensor, nn

from rundoku.papers.attention_is_all_you_need import FeedForward, MultiHeadAttention, causal_mask
from rundoku.papers.scaling_laws.counts import DecoderConfig


class DecoderBlock(nn.Module):
    """Masked self-attention and a feed-forward network, each added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d_head = config.attention_width // config.n_heads
        # torch's norm and not the room's: at these widths the room's, which spells every step out, would be a fifth of the sweep.
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.attention = MultiHeadAttention(config.d_model, config.n_heads, d_head, d_head)
        self.feed_forward = FeedForward(config.d_model, config.feed_forward_width)

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        """Return [B, N, C] from x [B, N, C] and the mask [N, N], True where attention is allowed."""
        normal = self.attention_norm(x)
        x = x + self.attention(normal, normal, normal, attn_mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class DecoderOnly(nn.Module):
    """Learned token and position embeddings, L blocks, a norm; the token embedding is the output projection too (Table 1, De-embed)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        for name, parameter in self.named_parameters():
            if name in ("tokens.weight", "positions.weight"):
                nn.init.normal_(parameter, std=config.d_model**-0.5)  # logits of unit variance at the start
            elif name.endswith(("attention.output.weight", "feed_forward.outer.weight")):
                # Small beside the embeddings, whose rows have norm 1, and not growing with depth.
                nn.init.xavier_uniform_(parameter, gain=(2 * config.n_layers * config.d_model) ** -0.5)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, N, V] for tokens [B, N]; raises ValueError when they are more than the context holds."""
        length = tokens.shape[-1]
        if length > self.config.n_ctx:
            raise ValueError(f"tokens: {length} in a row; expected at most n_ctx = {self.config.n_ctx}")
        # --8<-- [start:forward]
        x = self.tokens(tokens) + self.positions.weight[:length]  # [B, N, C]
        attn_mask = causal_mask(length, tokens.device)
        for block in self.blocks:
            x = block(x, attn_mask)
        return self.norm(x) @ self.tokens.weight.T
        # --8<-- [end:forward]


def non_embedding_parameters(model: nn.Module) -> int:
    """Return how many weights of matrices a model's blocks hold: N, counted on the modules themselves."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "blocks." in name and parameter.dim() > 1)
