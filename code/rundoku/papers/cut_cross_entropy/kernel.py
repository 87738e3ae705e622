"""Cut cross-entropy on a GPU: the call and its place in torch. The kernels are in `kernel_tiles`.

What it computes, for token n with the target t_n, and with softcap(x) = c·tanh(x/c), or x where c = 0 (Wijmans et al., Eq. 4):
    z_nv = softcap(h_n·w_v + b_v),   lse_n = log Σ_v exp(z_nv),   loss_n = lse_n − z_{n,t_n}
and, from the gradients u of loss and s of lse, with p_nv = exp(z_nv − lse_n) and c'_nv = 1 − (z_nv/c)²:
    g_nv = (p_nv·(u_n + s_n) − [v = t_n]·u_n)·c'_nv,   dh_n = Σ_v g_nv·w_v,   dw_v = Σ_n g_nv·h_n,   db_v = Σ_n g_nv

Layout: hidden [N, C] and weight [V, C], rows may be strided, elements of a row lie side by side; bias [V]; targets [N] int64; loss, lse and
the gradients of both [N] float32. Products are of the input's dtype, sums of float32; float32 is multiplied without TF32. Before g is
rounded to the input's dtype it is divided by the largest |u|, |u + s|, so that the 1/N of a mean does not push float16 into its subnormals.

Cost: forward 2·N·V·C floating-point operations, backward 8·N·V·C, of which filtering can leave out the half that follows the logits.
The paper makes each tile of logits once for both gradients (6·N·V·C) and lets the programs add to them in the order in which they get a
lock; here each gradient has a pass of its own, whose programs own what they add to. That is a third more operations, and the same bits
every time. Bytes: forward reads weight once for every BLOCK_N tokens and hidden once for every BLOCK_V words, most of it from the L2 cache,
and a row of both for each token's own logit: compute bounds it. Each backward pass reads as much for its tiles, one of the two twice, and
reads and writes its float32 sums once a tile, 8·C bytes a row for BLOCK/2 operations a byte, where the caches do not hold them below an
H100's ridge; a tile that is filtered moves none of it. What the call holds besides the gradients is O(N + V), and in backward float32 sums
for PROGRAMS blocks, (N + PROGRAMS·BLOCK_N)·C, then PROGRAMS·BLOCK_V·C.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rundoku.gpu.launch import INTERPRETED, Case, Config, Cost, expect, expect_tensor, triton
from rundoku.papers.cut_cross_entropy.kernel_configs import CONFIGS, DOT_CONFIG, config_for
from rundoku.papers.cut_cross_entropy.kernel_tiles import dot_kernel, hidden_kernel, logsumexp_kernel, weight_kernel
from rundoku.papers.cut_cross_entropy.loss import check, check_range, reduced, shifted_targets, threshold, vocabulary_order
from rundoku.papers.cut_cross_entropy.reference import reference

__all__ = ["linear_cross_entropy", "reference"]  # what a copy brings

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PROGRAMS = 128  # that a pass is cut into where there are few blocks of tokens, and whose sums in float32 are held at a time


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the cross-entropy of softcap(hidden · weightᵀ + bias) and targets, in float32, without holding the logits.

    hidden: [..., C] float16, bfloat16 or float32; weight: [V, C] of that dtype; targets: [...] int64 or int32; bias: [V], any of these
    dtypes. Under ``torch.autocast`` hidden and weight are cast as ``F.linear`` would cast them. Where elements of a row do not lie
    side by side the tensor is copied first.

    ``softcap`` c > 0 replaces a logit z by c·tanh(z/c). ``reduction`` is that of ``F.cross_entropy``: "mean" is over the tokens that are
    not ``ignore_index`` (NaN where there are none), "none" gives them 0. With ``shift`` s position i predicts targets[..., i + s], without
    a copy of hidden; the last s positions predict nothing, and "none" leaves them out. With ``return_lse`` also the log-sum-exp of every
    token, shaped as "none" would be and 0 where ignored: a z-loss is ``lse.square().sum()`` over the counted tokens' number.

    Differentiable once, in hidden, weight and bias, through loss and log-sum-exp. The gradients are the same bits every time. That costs
    one more product of hidden and weight than the paper's locks, a third more operations in an unfiltered backward pass.
    They are exact unless ``filter_eps`` is given: then a block of logits is left out where |softmax − 1 at the target| stays below it
    everywhere; "auto" means the dtype's machine epsilon / 32, the paper's 2⁻¹² in bfloat16, and the vocabulary is sorted for it.
    ``filter_weight=False`` filters the gradient of hidden alone, which the paper advises for pretraining (§5.3).

    Raises ValueError naming the argument at fault; under the interpreter also for a target outside the vocabulary. On a GPU, where
    looking would cost a synchronisation, the loss of such a token and all gradients are NaN, and nothing outside the tensors is read.
    A filter hides no NaN either: where a counted token has no finite log-sum-exp, all gradients are NaN.
    """
    expect_tensor("hidden", hidden)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (one.to(torch.get_autocast_dtype(hidden.device.type)) for one in (hidden, weight))
    expect_tensor("hidden", hidden, dtypes=DTYPES)
    expect_tensor("weight", weight, like=hidden, dtypes=(hidden.dtype,))
    expect_tensor("targets", targets, like=hidden, dtypes=(torch.int64, torch.int32))
    if bias is not None:
        expect_tensor("bias", bias, like=hidden, dtypes=DTYPES)
    check(hidden, weight, targets, bias, softcap, reduction, shift)
    expect(isinstance(ignore_index, int), "ignore_index", ignore_index, "a whole number")
    eps = threshold(filter_eps, hidden.dtype)
    shifted = shifted_targets(targets, shift, ignore_index)
    loss, lse = _forward(
        hidden.flatten(0, -2), weight, bias, shifted.flatten(), ignore_index, float(softcap), eps, eps if filter_weight else 0.0
    )
    return reduced(loss, lse, shifted, ignore_index, reduction, shift, return_lse)


def _readable(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where the elements of a row do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the tensor's GPU, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _counted(targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the tokens' numbers [N], those that count first and in order, and how many those are [1], without waiting for a GPU."""
    ignored = targets == ignore_index
    return torch.argsort(ignored, stable=True), (~ignored).sum().reshape(1)


def _splits(blocks: int, others: int) -> int:
    """Return into how many parts to cut a walk over ``others`` blocks, so that ``blocks`` walkers become PROGRAMS programs."""
    return max(1, min(others, PROGRAMS // blocks))


def _precision(tensor: Tensor) -> str:
    return "ieee" if tensor.dtype == torch.float32 else "tf32"  # half precision is exact in either, fp32 would lose 13 bits to TF32


@torch.library.custom_op("rundoku::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, softcap: float,
    eps_hidden: float, eps_weight: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if INTERPRETED:
        check_range(targets, len(weight), ignore_index)
    (n_rows, width), n_vocab = hidden.shape, len(weight)
    loss, lse = hidden.new_zeros(2, n_rows, dtype=torch.float32)
    if not n_rows:
        return loss.clone(), lse.clone()
    hidden, weight, bias = _readable(hidden), _readable(weight), None if bias is None else bias.contiguous()
    targets = targets.contiguous()
    tokens, n_tokens = _counted(targets, ignore_index)
    config, capped = config_for(hidden, "logsumexp"), softcap > 0
    row_blocks, n_blocks = triton.cdiv(n_rows, config.tiles["BLOCK_N"]), triton.cdiv(n_vocab, config.tiles["BLOCK_V"])
    splits = _splits(row_blocks, n_blocks)
    partial = hidden.new_zeros(splits, n_rows, dtype=torch.float32)
    with _on_device_of(hidden):
        logsumexp_kernel[(row_blocks * splits,)](
            hidden, weight, bias, tokens, n_tokens, partial, n_rows, n_vocab, width, hidden.stride(0), weight.stride(0), softcap,
            n_blocks, splits, SOFTCAP=capped, PRECISION=_precision(hidden), **config.launch(),
        )  # fmt: skip
        lse = torch.where(targets == ignore_index, 0.0, torch.logsumexp(partial, 0))
        dot_kernel[(triton.cdiv(n_rows, DOT_CONFIG.tiles["BLOCK_N"]),)](
            hidden, weight, bias, targets, tokens, n_tokens, lse, loss, n_vocab, width, hidden.stride(0), weight.stride(0), softcap,
            SOFTCAP=capped, **DOT_CONFIG.launch(),
        )  # fmt: skip
    return loss.clone(), lse


@_forward.register_fake
def _empty_forward(hidden, weight, bias, targets, ignore_index, softcap, eps_hidden, eps_weight):
    return tuple(hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("rundoku::linear_cross_entropy_backward", mutates_args=())
def _backward(
    grad_loss: Tensor, grad_lse: Tensor | None, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, lse: Tensor,
    ignore_index: int, softcap: float, eps_hidden: float, eps_weight: float, for_hidden: bool, for_weight: bool, for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wanted = ((for_hidden, hidden), (for_weight, weight), (for_bias and bias is not None, weight if bias is None else bias))
    grad_hidden, grad_weight, grad_bias = (
        torch.zeros_like(one, memory_format=torch.contiguous_format) if asked else one.new_zeros(0) for asked, one in wanted
    )
    if not len(hidden):
        return grad_hidden, grad_weight, grad_bias
    hidden, weight, bias = _readable(hidden), _readable(weight), None if bias is None else bias.contiguous()
    targets = targets.contiguous()
    tokens, n_tokens = _counted(targets, ignore_index)
    by_both = grad_loss if grad_lse is None else grad_loss + grad_lse
    scale = torch.where(targets == ignore_index, 0.0, torch.maximum(grad_loss.abs(), by_both.abs())).max()
    scale = torch.where(scale == 0, 1.0, scale)  # of everything that follows
    broken = (targets < 0) | (targets >= len(weight))  # no such word: a loss of NaN must not come with gradients that look sound
    if max(eps_hidden, eps_weight) > 0:
        broken |= ~lse.isfinite()  # nor may a filter leave it out, since NaN compares as small
    scale = torch.where((broken & (targets != ignore_index)).any(), float("nan"), scale)
    by_loss, by_both = (grad_loss / scale).contiguous(), (by_both / scale).contiguous()
    order = None
    if max(eps_hidden, eps_weight) > 0:
        middle = torch.where((targets == ignore_index)[:, None], 0.0, hidden).sum(0, dtype=torch.float32) / n_tokens.clamp(min=1)
        order = vocabulary_order(middle[None].to(hidden.dtype), weight, bias)
    made = (hidden, weight, bias, targets, tokens, n_tokens)
    shared = (lse, by_loss, by_both)
    with _on_device_of(hidden):
        if for_hidden:
            _hidden_pass(made, order if eps_hidden else None, shared, scale, softcap, eps_hidden, grad_hidden)
        if for_weight or for_bias:
            _weight_pass(made, order if eps_weight else None, shared, scale, softcap, eps_weight, grad_weight, grad_bias)
    return grad_hidden, grad_weight, grad_bias


@_backward.register_fake
def _empty_backward(
    grad_loss, grad_lse, hidden, weight, bias, targets, lse, ignore_index, softcap, eps_hidden, eps_weight, for_hidden, for_weight, for_bias
):
    grad_bias = weight.new_empty(0) if bias is None or not for_bias else bias.new_empty(bias.shape)
    return hidden.new_empty(hidden.shape if for_hidden else (0,)), weight.new_empty(weight.shape if for_weight else (0,)), grad_bias


def _hidden_pass(made: tuple, order: Tensor | None, shared: tuple, scale: Tensor, softcap: float, eps: float, grad: Tensor) -> None:
    hidden, weight = made[:2]
    (n_rows, width), n_vocab = hidden.shape, len(weight)
    config = config_for(hidden, "hidden")
    row_blocks, n_blocks = triton.cdiv(n_rows, config.tiles["BLOCK_N"]), triton.cdiv(n_vocab, config.tiles["BLOCK_V"])
    splits = _splits(row_blocks, n_blocks)
    total = hidden.new_zeros(splits, n_rows, width, dtype=torch.float32)
    hidden_kernel[(row_blocks * splits,)](
        *made, order, *shared, total, n_rows, n_vocab, width, hidden.stride(0), weight.stride(0), softcap, eps, n_blocks, splits,
        SOFTCAP=softcap > 0, FILTER=order is not None, PRECISION=_precision(hidden), **config.launch(),
    )  # fmt: skip
    grad.copy_((total.sum(0) if splits > 1 else total[0]).mul_(scale))


def _weight_pass(
    made: tuple, order: Tensor | None, shared: tuple, scale: Tensor, softcap: float, eps: float, grad: Tensor, grad_bias: Tensor
) -> None:
    hidden, weight = made[:2]
    width, n_vocab = hidden.shape[1], len(weight)
    config = config_for(hidden, "weight")
    block, n_blocks = config.tiles["BLOCK_V"], triton.cdiv(n_vocab, config.tiles["BLOCK_V"])
    bias_sums = weight.new_zeros(n_vocab, dtype=torch.float32) if len(grad_bias) else None
    for first in range(0, n_blocks, PROGRAMS):  # in turns, so that the sums in float32 are of some rows only
        programs = min(PROGRAMS, n_blocks - first)
        total = weight.new_zeros(programs * block, width, dtype=torch.float32)
        weight_kernel[(programs,)](
            *made, order, *shared, total, bias_sums, first, n_vocab, width, hidden.stride(0), weight.stride(0), softcap, eps,
            SOFTCAP=softcap > 0, FILTER=order is not None, PRECISION=_precision(hidden), **config.launch(),
        )  # fmt: skip
        if len(grad):
            rows = slice(first * block, min((first + programs) * block, n_vocab))
            total = total[: rows.stop - rows.start].mul_(scale).to(grad.dtype)
            if order is None:
                grad[rows] = total
            else:
                grad[order[rows]] = total
    if bias_sums is not None:
        grad_bias.copy_(bias_sums.mul_(scale))


def _save(ctx, inputs, output) -> None:
    hidden, weight, bias, targets, *settings = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, output[1])
    ctx.settings = settings
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss, grad_lse):
    hidden, weight, bias, targets, lse = ctx.saved_tensors
    if grad_loss is None:
        grad_loss = torch.zeros_like(lse)  # where only the log-sum-exp is used
    wanted = ctx.needs_input_grad[:3]
    grads = _backward(grad_loss, grad_lse, hidden, weight, bias, targets, lse, *ctx.settings, *wanted)
    return *(grad if asked else None for grad, asked in zip(grads, wanted, strict=True)), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def compile_cases(target: str) -> list[Case]:
    """Return every entry of CONFIGS[target] with every option, in bf16 also unfiltered, and the dot that all targets share."""
    kernels = {
        "logsumexp": (logsumexp_kernel, "forward"),
        "hidden": (hidden_kernel, "backward, hidden"),
        "weight": (weight_kernel, "backward, weight"),
    }
    cases = []
    for (use, size), config in CONFIGS[target].items():
        function, title = kernels[use]
        dtype, precision = {2: ("bf16", "tf32"), 4: ("fp32", "ieee")}[size]
        flags = {"SOFTCAP": True, "FILTER": True, "PRECISION": precision}
        cost = _cost(use, size, config.tiles)
        cases.append(_case(f"{title}, {dtype}", function, config, dtype, flags, cost))
        if size == 2 and use != "logsumexp":
            bare = {"SOFTCAP": False, "FILTER": False, "order": None, "PRECISION": precision}
            cases.append(_case(f"{title}, unfiltered, {dtype}", function, config, dtype, bare, cost))
    return [*cases, _case("target's logit, bf16", dot_kernel, DOT_CONFIG, "bf16", {"SOFTCAP": True}, _cost("dot", 2, {}))]


def _cost(use: str, size: int, tiles: dict[str, int]) -> Cost:
    n, c, v = 8192, 2304, 256_000  # Gemma 2 (2B), the paper's Table 1; unfiltered
    read = size * c * (n + v)  # hidden and weight
    flops, moved = {
        "dot": (2 * n * c, size * 2 * n * c),
        "logsumexp": (2 * n * v * c, read),
        "hidden": (4 * n * v * c, read + 8 * n * c * v / tiles.get("BLOCK_V", 1)),  # sums read and written for each block of the vocabulary
        "weight": (4 * n * v * c, read + 8 * v * c * n / tiles.get("BLOCK_N", 1)),
    }[use]
    dtype = "float32" if size == 4 or use == "dot" else "bfloat16"
    return Cost(float(flops), float(moved), dtype, f"N = {n:,}, C = {c:,}, V = {v:,}")


def _case(name: str, function: Any, config: Config, dtype: str, flags: dict[str, Any], cost: Cost) -> Case:
    kinds = {
        **dict.fromkeys(("hidden", "weight", "bias"), f"*{dtype}"),
        **dict.fromkeys(("targets", "tokens", "n_tokens", "order"), "*i64"),
        **dict.fromkeys(("lse", "loss", "partial", "by_loss", "by_both", "total", "grad_bias"), "*fp32"),
        **dict.fromkeys(("softcap", "eps"), "fp32"),
    }
    constants = {flag: value for flag, value in flags.items() if flag in function.arg_names}
    types = {name: kinds.get(name, "i32") for name in function.arg_names if name not in constants and name not in config.tiles}
    return Case(name, function, types, config, constants, cost=cost)
