"""Cut cross-entropy in plain torch: the loss of a linear layer's logits, block by block, and its gradients with blocks left out.

Axes: N tokens, C model width, V vocabulary. The logits of a block exist only until they have gone into the sums.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rundoku.papers.flash_attention.online_softmax import absorb, finish, nothing_seen


class Settings(NamedTuple):
    """What a call asks for, besides its tensors."""

    ignore_index: int
    softcap: float
    eps_hidden: float  # blocks below are left out of the gradient of hidden; 0: none are
    eps_weight: float  # the same, for weight and bias
    block_tokens: int = 1024
    block_vocab: int = 2048


# --8<-- [start:logits]
def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float) -> Tensor:
    """Return softcap(h·w + b) of a block, [N_b, V_b] in float32 at least, from hidden [N_b, C], weight [V_b, C] and bias [V_b] or None."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    z = hidden.to(wide) @ weight.to(wide).T  # [N_b, V_b]
    if bias is not None:
        z = z + bias.to(wide)
    return softcap * torch.tanh(z / softcap) if softcap else z


def linear_logsumexp(hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """Return log Σ_v exp(z_nv), [N], over blocks of the vocabulary (Alg. 2), with FlashAttention's online softmax and no values."""
    found = []
    for rows in hidden.split(settings.block_tokens):
        seen = nothing_seen(rows.to(torch.promote_types(rows.dtype, torch.float32)), 0)
        for first in range(0, len(weight), settings.block_vocab):
            block = slice(first, first + settings.block_vocab)
            z = logits(rows, weight[block], None if bias is None else bias[block], settings.softcap)
            seen = absorb(seen, z, z.new_empty(z.shape[1], 0))
        found.append(finish(seen)[1])
    return torch.cat(found) if found else hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))


def indexed_dot(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float) -> Tensor:
    """Return the logit of each token's own target, [N] (Alg. 1): one row of weight a token, the other logits are not needed."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    z = (hidden.to(wide) * weight[targets].to(wide)).sum(-1)
    if bias is not None:
        z = z + bias[targets].to(wide)
    return softcap * torch.tanh(z / softcap) if softcap else z
    # --8<-- [end:logits]


# --8<-- [start:filter]
def threshold(filter_eps: float | str | None, dtype: torch.dtype) -> float:
    """Return ε: 0 for None, and for "auto" 2⁻⁵ of the dtype's machine epsilon, which is the paper's 2⁻¹² in bfloat16 (§4.3).

    Raises ValueError for anything but None, "auto" and a number from 0 up to 1.
    """
    if filter_eps is None:
        return 0.0
    if filter_eps == "auto":
        return torch.finfo(dtype).eps / 32
    if isinstance(filter_eps, bool) or not isinstance(filter_eps, int | float) or not 0 <= filter_eps < 1:
        raise ValueError(f'filter_eps: got {filter_eps!r}, expected None, "auto" or a number from 0 up to 1')
    return float(filter_eps)


def vocabulary_order(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the vocabulary [V] from the largest average logit to the smallest (vocabulary sorting, §4.3).

    Σ_n h_n·w_v = (Σ_n h_n)·w_v: the average of a row of logits is the logit of the average token, one matrix–vector product.
    A soft cap is left out of it: the order is a guess of where the large probabilities are, and no result depends on it.
    """
    middle = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).mean(0).to(hidden.dtype)  # [C]
    average = (weight @ middle).to(torch.promote_types(hidden.dtype, torch.float32))  # [V]
    return torch.argsort(average if bias is None else average + bias, descending=True, stable=True)
    # --8<-- [end:filter]


class _Loss(torch.autograd.Function):
    """Loss and log-sum-exp of each token, [N] both; what is kept for the gradients is the inputs and the latter."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        counted = (targets != settings.ignore_index).nonzero()[:, 0]  # ignored tokens cost nothing from here on
        rows, wanted = hidden[counted], targets[counted]
        lse = linear_logsumexp(rows, weight, bias, settings)
        loss = lse - indexed_dot(rows, weight, bias, wanted, settings.softcap)  # Eq. 4, negated
        ctx.save_for_backward(hidden, weight, bias, counted, wanted, lse)
        ctx.settings = settings
        everywhere = lse.new_zeros(2, len(hidden))
        return everywhere[0].index_put((counted,), loss), everywhere[1].index_put((counted,), lse)

    # --8<-- [start:backward]
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, counted, wanted, lse = ctx.saved_tensors
        settings: Settings = ctx.settings
        sorts = len(counted) and max(settings.eps_hidden, settings.eps_weight)
        order = vocabulary_order(hidden[counted], weight, bias) if sorts else torch.arange(len(weight), device=weight.device)
        grad_hidden, grad_weight = (torch.zeros_like(x, dtype=lse.dtype) for x in (hidden, weight))
        grad_bias = lse.new_zeros(len(weight))
        for first in range(0, len(counted), settings.block_tokens):
            tokens = slice(first, first + settings.block_tokens)
            rows = hidden[counted[tokens]].to(lse.dtype)  # [N_b, C]
            by_loss, by_lse = grad_loss[counted[tokens], None], grad_lse[counted[tokens], None]  # [N_b, 1]
            for block in order.split(settings.block_vocab):  # [V_b]
                z = logits(rows, weight[block], None if bias is None else bias[block], settings.softcap)  # once more
                p = torch.exp(z - lse[tokens, None])  # softmax, with the sum that forward has kept
                is_target = (block == wanted[tokens, None]).to(p.dtype)
                largest = (p - is_target).abs().max()  # what the filter looks at (Alg. 3)
                g = p * (by_loss + by_lse) - is_target * by_loss  # ∂/∂z
                if settings.softcap:
                    g = g * (1 - (z / settings.softcap).square())  # c·tanh(x/c) has the slope 1 − tanh²(x/c)
                if not largest < settings.eps_hidden:  # so that NaN is never left out
                    grad_hidden[counted[tokens]] += g @ weight[block].to(g.dtype)
                if not largest < settings.eps_weight:
                    grad_weight.index_add_(0, block, g.T @ rows)
                    grad_bias.index_add_(0, block, g.sum(0))
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None if bias is None else grad_bias.to(bias.dtype), None, None

    # --8<-- [end:backward]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float = 0.0,
    reduction: str = "mean",
    shift: int = 0,
    return_lse: bool = False,
    filter_eps: float | str | None = None,
    filter_weight: bool = True,
    block_tokens: int = 1024,
    block_vocab: int = 2048,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the cross-entropy of softcap(hidden · weightᵀ + bias) and targets, holding block_tokens × block_vocab logits at a time.

    hidden: [..., C], weight: [V, C], targets: [...] integers, bias: [V]; returns float32 (float64 for float64). The arguments are those of
    the kernel's ``linear_cross_entropy``, which says what each does. Differentiable once, in hidden, weight and bias. Raises ValueError
    naming the argument at fault, a target outside the vocabulary among them.
    """
    check(hidden, weight, targets, bias, softcap, reduction, shift)
    if min(block_tokens, block_vocab) < 1:
        raise ValueError(f"block_tokens, block_vocab: got {block_tokens} and {block_vocab}, expected at least 1 each")
    if not isinstance(ignore_index, int):
        raise ValueError(f"ignore_index: got {ignore_index!r}, expected a whole number")
    eps = threshold(filter_eps, hidden.dtype)
    shifted = shifted_targets(targets, shift, ignore_index)
    check_range(shifted, len(weight), ignore_index)
    settings = Settings(ignore_index, float(softcap), eps, eps if filter_weight else 0.0, block_tokens, block_vocab)
    loss, lse = _Loss.apply(hidden.flatten(0, -2), weight, bias, shifted.flatten(), settings)
    return reduced(loss, lse, shifted, ignore_index, reduction, shift, return_lse)


def check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float, reduction: str, shift: int) -> None:
    """Raise ValueError naming the argument, what it was and what was expected, where the arguments do not fit one another."""

    def expect(holds: bool, name: str, value: object, wanted: str) -> None:
        if not holds:
            was = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{name}: got {was}, expected {wanted}")

    expect(hidden.dim() > 1 and hidden.shape[-1] > 0 and hidden.is_floating_point(), "hidden", hidden, "floating point [..., C]")
    width = hidden.shape[-1]
    fits = weight.dim() == 2 and len(weight) > 0 and weight.shape[1] == width and weight.dtype == hidden.dtype
    expect(fits, "weight", weight, f"{hidden.dtype} of shape [V, {width}], V at least 1")
    right = targets.shape == hidden.shape[:-1] and targets.dtype in (torch.int32, torch.int64)
    expect(right, "targets", targets, f"int64 or int32 of shape {tuple(hidden.shape[:-1])}, the tokens of hidden")
    fits = bias is None or (bias.shape == weight.shape[:1] and bias.is_floating_point())
    expect(fits, "bias", bias, f"floating point of shape {tuple(weight.shape[:1])}")
    number = isinstance(softcap, int | float) and not isinstance(softcap, bool) and softcap >= 0 and math.isfinite(softcap)
    expect(number, "softcap", softcap, "0 (none) or a positive number")
    expect(reduction in ("mean", "sum", "none"), "reduction", reduction, '"mean", "sum" or "none"')
    expect(isinstance(shift, int) and 0 <= shift <= targets.shape[-1], "shift", shift, "a whole number from 0 to the last axis's length")


def check_range(targets: Tensor, vocabulary: int, ignore_index: int) -> None:
    """Raise ValueError where a target is neither ignored nor in the vocabulary; it looks at the numbers, which a GPU makes us wait for."""
    wrong = targets[(targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))]
    if len(wrong):
        raise ValueError(f"targets: got {int(wrong[0])}, expected {ignore_index} (ignored) or a token from 0 to {vocabulary - 1}")


def shifted_targets(targets: Tensor, shift: int, ignore_index: int) -> Tensor:
    """Return what each position has to predict, the shape kept: the target ``shift`` places on, and nothing at the end."""
    targets = targets.long()
    if not shift:
        return targets
    return torch.cat([targets[..., shift:], targets.new_full((*targets.shape[:-1], int(shift)), ignore_index)], -1)


def reduced(
    loss: Tensor, lse: Tensor, targets: Tensor, ignore_index: int, reduction: str, shift: int, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Return loss and log-sum-exp as the call wants them, from both for each token, 0 where ignored. The mean is over what is counted."""
    loss, lse = (one.view(targets.shape)[..., : targets.shape[-1] - shift] for one in (loss, lse))
    if reduction == "mean":
        loss = loss.sum() / (targets != ignore_index).sum()
    elif reduction == "sum":
        loss = loss.sum()
    return (loss, lse) if return_lse else loss
