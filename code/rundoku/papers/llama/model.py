"""The decoder of §2.2: RMSNorm before each sub-layer, rotary positions, SwiGLU, and no bias anywhere.

Axes: B batch, N new tokens, M tokens so far (N where nothing is cached), H query heads, G key-value heads, D head width, C model width,
V vocabulary.
"""

import torch
from torch import Tensor, nn

from rundoku.papers.glu_variants import GatedFeedForward
from rundoku.papers.grouped_query_attention import grouped_attention
from rundoku.papers.llama.cache import KVCache
from rundoku.papers.llama.config import LlamaConfig
from rundoku.papers.rms_norm import RMSNorm
from rundoku.papers.roformer import rotary_tables, rotate


class Attention(nn.Module):
    """Attention with rotary positions, for as many key-value heads as the configuration has; no projection has a bias."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.d_head = config.d_head
        self.query = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.key = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.value = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.output = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """Return the heads of x [B, N, H·D] as [B, H, N, D]."""
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    # --8<-- [start:attention]
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        """Return [B, N, C] from x [B, N, C]; cos, sin: [..., N, D/2], allowed: [..., N, M]."""
        query, key = self.split(self.query(x)), self.split(self.key(x))  # [B, H, N, D], [B, G, N, D]
        value = self.split(self.value(x))  # [B, G, N, D]: positions do not touch it
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.append(layer, key, value)  # [B, G, M, D]
        heads = grouped_attention(query, key, value, allowed)  # [B, H, N, D]
        return self.output(heads.transpose(1, 2).flatten(2))  # [B, N, C]
        # --8<-- [end:attention]


class Block(nn.Module):
    """One layer: attention and feed-forward network, each behind a norm and added to what came in."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = GatedFeedForward(config.d_model, config.d_ff, "silu")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        """Return [B, N, C]; the arguments are those of `Attention.forward`."""
        # --8<-- [start:block]
        x = x + self.attention(self.attention_norm(x), cos, sin, allowed, cache, layer)
        return x + self.feed_forward(self.feed_forward_norm(x))
        # --8<-- [end:block]


class Llama(nn.Module):
    """The language model of the paper, and with fewer key-value heads, another base or a tied head those that came after it.

    The paper gives no initialisation: every matrix starts from a normal distribution of deviation 0.02, every gain from 1.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.tie()

    def tie(self) -> None:
        """Let the head share the embedding's weight again where the configuration says so; whatever replaced either calls this."""
        if self.config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, attn_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return the logits [B, N, V] of the token after each of ids [B, N].

        `attn_mask` [B, M] is True for real tokens and False for padding; rows of different length are padded on the left.
        `cache` holds the M - N tokens before and takes in these; without a mask new tokens are real and old ones as it remembers.
        What comes out at padded positions means nothing. Raises ValueError where ids, mask, cache and `max_length` do not fit.
        """
        return self.head(self.hidden(ids, attn_mask, cache))

    def hidden(self, ids: Tensor, attn_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return what the head reads, [B, N, C]: the output of the last block, normalised. Arguments and errors as in `forward`."""
        self._check(ids, attn_mask, cache)
        # --8<-- [start:hidden]
        real = self.real_tokens(ids, attn_mask, cache)  # [B, M]
        positions = self.positions(real)[:, -ids.shape[1] :]  # [B, N]
        cos, sin = rotary_tables(positions, self.config.d_head, self.config.rope_base)  # [B, N, D/2]
        cos, sin, allowed = cos.unsqueeze(1), sin.unsqueeze(1), self.allowed(real, ids.shape[1])
        x = self.embedding(ids)  # [B, N, C]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, allowed, cache, layer)
        if cache is not None:
            cache.advance(real[:, -ids.shape[1] :])
        return self.norm(x)
        # --8<-- [end:hidden]

    # --8<-- [start:positions]
    def positions(self, real: Tensor) -> Tensor:
        """Return how many real tokens stand before each column: [B, M] -> [B, M]."""
        return (real.cumsum(-1) - 1).clamp(min=0)

    def allowed(self, real: Tensor, length: int) -> Tensor:
        """Return which of the M columns the last N may attend to, [B, 1, N, M]: real ones, none later than itself."""
        column = torch.arange(real.shape[1], device=real.device)
        return (real[:, None] & (column <= column[-length:, None])).unsqueeze(1)
        # --8<-- [end:positions]

    def real_tokens(self, ids: Tensor, attn_mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """Return [B, M]: which of the tokens so far are no padding."""
        if attn_mask is not None:
            return attn_mask
        new = torch.ones_like(ids, dtype=torch.bool)
        return new if cache is None else torch.cat([cache.real[:, : cache.length], new], 1)

    def _check(self, ids: Tensor, attn_mask: Tensor | None, cache: KVCache | None) -> None:
        """Raise ValueError where ids, mask and cache do not fit the model or each other."""
        if ids.dim() != 2 or not ids.shape[1] or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids: got {ids.dtype} of shape {tuple(ids.shape)}; expected int64 of shape [B, N] with N at least 1")
        past = 0 if cache is None else cache.length
        batch, total = ids.shape[0], past + ids.shape[1]
        if cache is not None and cache.batch_size != batch:
            raise ValueError(f"cache: it holds {cache.batch_size} sequences; expected {batch}, as in ids")
        if cache is not None and len(cache.states) != self.config.n_layers:
            raise ValueError(f"cache: it has {len(cache.states)} layers; expected {self.config.n_layers}")
        if total > self.config.max_length:
            raise ValueError(f"ids: {past} + {ids.shape[1]} tokens; expected at most max_length = {self.config.max_length}")
        if cache is not None and total > cache.capacity:
            raise ValueError(f"cache: {past} + {ids.shape[1]} tokens; expected at most its capacity of {cache.capacity}")
        if attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.shape != (batch, total)):
            got = f"{attn_mask.dtype} of shape {tuple(attn_mask.shape)}"
            raise ValueError(f"attn_mask: got {got}; expected bool of shape {(batch, total)}: cached and new tokens")
        if ids.is_meta or torch.compiler.is_compiling() or not ids.numel():
            return  # nothing to look at
        low, high = ids.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"ids: values from {low} to {high}; expected 0 to {self.config.vocab_size - 1}")
