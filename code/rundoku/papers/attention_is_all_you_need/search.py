"""Greedy and beam search (§6.1), over anything that scores the next token.

Axes: B batch, K beams, T tokens so far, V vocabulary. `step` takes prefixes and returns log-probabilities [rows, V] of the next token.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rundoku.papers.attention_is_all_you_need.model import Transformer

Step = Callable[[Tensor], Tensor]


def length_penalty(length: int, alpha: float) -> float:
    """Return ((5 + length)/6)^α, what a log-probability is divided by (Wu et al., 1609.08144)."""
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def greedy_search(step: Step, prefix: Tensor, eos: int, max_length: int) -> Tensor:
    """Return prefix [B, T] continued with the likeliest token each time, until `eos` or for `max_length` tokens.

    Rows that have ended repeat `eos` while others go on.
    """
    ended = torch.zeros(prefix.shape[0], dtype=torch.bool, device=prefix.device)
    for _ in range(max_length):
        token = step(prefix).argmax(dim=-1).masked_fill(ended, eos)  # [B]
        prefix = torch.cat((prefix, token[:, None]), dim=-1)
        ended |= token == eos
        if ended.all():
            break
    return prefix


# --8<-- [start:beam]
@torch.no_grad()
def beam_search(step: Step, prefix: Tensor, eos: int, max_length: int, beam_size: int = 4, alpha: float = 0.6) -> tuple[Tensor, Tensor]:
    """Return the K best continuations of prefix [B, T] as tokens [B, K, T + max_length] and scores [B, K], best first (§6.1).

    A score is log-probability / length penalty, where the length counts `eos`; tokens after `eos` are `eos`. `step` sees [B·K, T]; the
    K rows of one source stay together, so what it knows about the source is repeated once and never reordered. Where there are fewer
    than K sentences, scores of -inf fill up. Raises ValueError when alpha is negative: then no bound says when to stop.
    """
    if alpha < 0:
        raise ValueError(f"alpha: {alpha}; expected 0 (no penalty) or more")
    alive = prefix[:, None].repeat(1, beam_size, 1)  # [B, K, T]
    log_p = torch.full(alive.shape[:2], -math.inf, device=prefix.device)  # [B, K]
    log_p[:, 0] = 0.0  # the K beams are the same at first: only one may count
    done = torch.full((*alive.shape[:2], prefix.shape[-1] + max_length), eos, device=prefix.device)
    scores = torch.full_like(log_p, -math.inf)
    for length in range(1, max_length + 1):
        extended = log_p[..., None] + step(alive.flatten(0, 1)).unflatten(0, alive.shape[:2])  # [B, K, V]
        # Every beam may stop here; the K best of all sentences that ever stopped are kept.
        scores, best = torch.cat((scores, extended[..., eos] / length_penalty(length, alpha)), dim=-1).topk(beam_size)  # [B, K]
        stopped = torch.full_like(done, eos)
        stopped[..., : alive.shape[-1]] = alive
        done = torch.cat((done, stopped), dim=1).gather(1, best[..., None].expand_as(done))
        # The others go on: the K best pairs of a beam and a token other than eos.
        extended[..., eos] = -math.inf
        log_p, pair = extended.flatten(1).topk(beam_size)  # [B, K]
        beam, token = pair // extended.shape[-1], pair % extended.shape[-1]
        alive = torch.cat((alive.gather(1, beam[..., None].expand_as(alive)), token[..., None]), dim=-1)
        # Log-probabilities only fall: no beam can still beat a finished sentence once even the largest penalty would not lift it above.
        if (log_p[:, 0] / length_penalty(max_length, alpha) <= scores[:, -1]).all():
            break
    return done, scores
    # --8<-- [end:beam]


def next_token(model: Transformer, memory: Tensor, source_mask: Tensor) -> Step:
    """Return the `step` of the two searches: log-probabilities [rows, V] of the token after each prefix, given what was encoded."""
    return lambda prefix: torch.log_softmax(model.decode(prefix, memory, source_mask)[:, -1], dim=-1)


@torch.no_grad()
def translate(
    model: Transformer, source: Tensor, beam_size: int = 4, alpha: float = 0.6, max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the K best translations [B, K, T] of source [B, M] and their scores [B, K]; at most M + 50 tokens after `bos` (§6.1)."""
    memory, source_mask = (x.repeat_interleave(beam_size, dim=0) for x in model.encode(source))  # [B·K, ...]
    bos = source.new_full((source.shape[0], 1), model.config.bos)
    max_length = source.shape[-1] + 50 if max_length is None else max_length
    return beam_search(next_token(model, memory, source_mask), bos, model.config.eos, max_length, beam_size, alpha)


@torch.no_grad()
def translate_greedily(model: Transformer, source: Tensor, max_length: int | None = None) -> Tensor:
    """Return the translation [B, T] of source [B, M] that takes the likeliest token each time; at most M + 50 tokens after `bos`."""
    bos = source.new_full((source.shape[0], 1), model.config.bos)
    max_length = source.shape[-1] + 50 if max_length is None else max_length
    return greedy_search(next_token(model, *model.encode(source)), bos, model.config.eos, max_length)
