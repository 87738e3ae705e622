"""The whole model: tokens in, a score for every next token out (Fig. 1).

Axes: B batch, M source length, N target length, C model width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from rundoku.papers.attention_is_all_you_need.attention import MultiHeadAttention
from rundoku.papers.attention_is_all_you_need.config import TransformerConfig
from rundoku.papers.attention_is_all_you_need.layers import Decoder, DecoderLayer, Encoder
from rundoku.papers.attention_is_all_you_need.positions import sinusoidal_positions


class Transformer(nn.Module):
    """Encoder and decoder over one shared embedding matrix, which is the output projection too (§3.4)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and name != "embedding.weight":
                nn.init.xavier_uniform_(parameter)
        # The paper is silent on initialization. Times √C, these rows have unit variance; as output weights they give unit-variance logits.
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)

    # --8<-- [start:model]
    def embed(self, tokens: Tensor) -> Tensor:
        """Return √C · embedding + position, [B, N] -> [B, N, C] (§3.4, §3.5)."""
        x = self.embedding(tokens) * math.sqrt(self.config.d_model)
        positions = sinusoidal_positions(x.shape[-2], x.shape[-1], x.device)  # [N, C]
        return self.dropout(x + positions.to(x.dtype))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return memory [B, M, C] of source [B, M], and a mask [B, 1, 1, M] hiding its padding."""
        source_mask = (source != self.config.pad)[:, None, None, :]
        return self.encoder(self.embed(source), source_mask), source_mask

    def decode(self, target: Tensor, memory: Tensor, source_mask: Tensor) -> Tensor:
        """Return logits [B, N, V]: after each token of target [B, N], a score for every next one."""
        x = self.decoder(self.embed(target), memory, source_mask)
        return x @ self.embedding.weight.T

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits [B, N, V]; target starts with `bos`, one step behind what it predicts."""
        memory, source_mask = self.encode(source)
        return self.decode(target, memory, source_mask)
        # --8<-- [end:model]


@torch.no_grad()
def cross_attention_maps(model: Transformer, source: Tensor, target: Tensor) -> Tensor:
    """Return the maps [L, B, H, N, M] with which every decoder layer reads source [B, M] while it is fed target [B, N].

    Row n belongs to the token that the model predicts from target[:, : n + 1], the one after target[:, n].
    """
    maps: list[Tensor] = []

    def look(attention: MultiHeadAttention, inputs: tuple[Tensor, ...]) -> None:
        query, key, _, attn_mask = inputs
        maps.append(attention.weights(query, key, attn_mask))

    attentions = [layer.cross_attention for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
    hooks = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        model(source, target)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)
