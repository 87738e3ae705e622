"""Text from the model: greedy, or drawn after temperature, top-k and top-p (nucleus) truncation."""

import math

import torch
from torch import Tensor

from rundoku.papers.llama.cache import KVCache
from rundoku.papers.llama.model import Llama


def next_token_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return the distribution that a token is drawn from, [..., V] from logits [..., V], in float32 at least.

    The logits are divided by `temperature`; then the `top_k` most probable tokens stay (more where the last ones tie), and of these
    the fewest whose probabilities reach `top_p` together. Temperature 0 puts everything on the most probable token, the first of equals.
    Raises ValueError for a temperature below 0, a `top_k` below 1 or a `top_p` outside (0, 1].
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}; expected a number of at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}; expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}; expected above 0 and at most 1")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # --8<-- [start:truncate]
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, tokens = logits.sort(descending=True, stable=True)
        chances = ordered.softmax(-1)
        before = chances.cumsum(-1) - chances  # what the more probable tokens hold together
        dropped = (before >= top_p).scatter(-1, tokens, before >= top_p)  # back in the order of the vocabulary
        logits = logits.masked_fill(dropped, -math.inf)
    return logits.softmax(-1)
    # --8<-- [end:truncate]


@torch.no_grad()
def generate(
    model: Llama,
    ids: Tensor,
    n_new: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    eos: int | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Return ids [B, N] continued by up to `n_new` tokens, [B, N + new]; temperature 0 takes the most probable token each time.

    A row that has produced `eos` is filled up with it; when all have, generation ends. Prompts of different length are padded on the
    left, with `attn_mask` [B, N] False at the padding. Raises ValueError where prompt and new tokens exceed `max_length`, or an argument
    does not fit.
    """
    if n_new < 0:
        raise ValueError(f"n_new: got {n_new}; expected at least 0")
    if ids.dim() == 2 and ids.shape[1] + n_new > model.config.max_length:
        raise ValueError(f"n_new: {ids.shape[1]} + {n_new} tokens; expected at most max_length = {model.config.max_length}")
    if not n_new:
        return ids
    # --8<-- [start:generate]
    weight = model.embedding.weight
    cache = KVCache(model.config, len(ids), ids.shape[1] + n_new, weight.device, weight.dtype)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    read = ids  # at first the whole prompt, then one token at a time
    for _ in range(n_new):
        logits = model.head(model.hidden(read, attn_mask, cache)[:, -1])  # [B, V]: of the last position alone
        attn_mask = None  # the cache remembers what was padding
        chances = next_token_probabilities(logits, temperature, top_k, top_p)
        read = chances.argmax(-1, keepdim=True) if temperature == 0 else torch.multinomial(chances, 1, generator=generator)
        if eos is not None:
            read = read.masked_fill(ended[:, None], eos)
            ended |= read[:, 0] == eos
        ids = torch.cat([ids, read], 1)
        if ended.all():
            break
    return ids
    # --8<-- [end:generate]
