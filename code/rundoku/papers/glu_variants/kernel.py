"""The gate of a gated feed-forward network in Triton, forward and backward: activation and product in one pass.

What it computes, element by element (Shazeer, Eq. 4 and 5), from gate g, up u and the gradient dh:
    h  = act(g)·u
    dg = dh·u·act′(g),   du = dh·act(g)
    act: "sigmoid"    σ(g)                              act′ = σ·(1 − σ)
         "identity"   g                                 act′ = 1
         "relu"       max(g, 0)                         act′ = [g > 0]
         "gelu"       g·Φ(g),  Φ(g) = (1 + erf(g/√2))/2    act′ = Φ + g·φ(g),  φ(g) = exp(−g²/2)/√(2π)
         "gelu_tanh"  g·σ(2z),  z = √(2/π)·(g + 0.044715·g³)    act′ = σ + 2·g·σ·(1 − σ)·z′   [(1 + tanh z)/2 = σ(2z)]
         "silu"       g·σ(g)                            act′ = σ·(1 + g·(1 − σ))

Layout: gate, up, dh: [R, F], rows may be strided, elements of a row lie side by side, so both halves of one projection [R, 2F] are taken
as they are; h, dg, du: [R, F], contiguous. Where all are contiguous they are one long row. All arithmetic is in float32: the activation
is never rounded to the dtype of the input.

Cost: SwiGLU takes 6 FLOP an element forward (negation, exp, sum, quotient, two products) and 12 backward, the others as FLOPS has them,
and 3·R·F·s and 5·R·F·s bytes to and from memory, s bytes an element. In bfloat16 that is below 2 FLOP a byte: memory bounds it. In plain
torch act(g) is a tensor of its own, written and read again: 5·R·F·s and 9·R·F·s bytes, and kept for backward, which here computes it
again from g.
"""

import torch

from rundoku.gpu.launch import Case, Choice, Config, Cost, expect, expect_tensor, grid, target_of, tl, triton
from rundoku.papers.glu_variants import gating

__all__ = ["gated", "reference"]  # what a copy brings

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# One entry serves every width and target: 8 elements a thread are one load of 16 bytes in half precision, and nothing else asks for a size.
_TABLE = (Config({"BLOCK": 1024}, num_warps=4, num_stages=1),)
CONFIGS: dict[str, tuple[Config, ...]] = dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942", "other", "interpreter"), _TABLE)

FLOPS = {  # an element, forward and backward; a comparison (of ReLU two, one for NaN), exp and erf count as one each
    "sigmoid": (5, 9), "identity": (1, 2), "relu": (3, 5), "gelu": (6, 14), "gelu_tanh": (11, 22), "silu": (6, 12),
}  # fmt: skip
COUNTED = (4096, 11_008)  # R and F at which the compile report states costs


def config_for(tensor: torch.Tensor) -> Config:
    """Return the entry of CONFIGS for a tensor's device."""
    return CONFIGS[target_of(tensor)][0]


# --8<-- [start:activation]
@triton.jit
def _activate(gate, ACTIVATION: tl.constexpr):
    """Return act(g) and act′(g) in float32; what nobody uses of the two is not computed."""
    if ACTIVATION == "sigmoid":
        value = tl.sigmoid(gate)
        slope = value * (1.0 - value)
    elif ACTIVATION == "identity":
        value = gate
        slope = tl.full(gate.shape, 1.0, tl.float32)
    elif ACTIVATION == "relu":
        value = tl.where(gate > 0, gate, tl.where(gate == gate, 0.0, gate))  # NaN stays NaN
        slope = tl.where(gate > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        below = 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)  # Φ(g)
        value = gate * below
        slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    elif ACTIVATION == "gelu_tanh":
        square = gate * gate
        twice = 1.5957691216057308 * gate * (1.0 + 0.044715 * square)  # 2z
        below = tl.sigmoid(twice)
        value = gate * below
        # 1 − σ as σ(−2z): as a difference it would lose its digits where z is large, and be multiplied by g³
        slope = below + value * tl.sigmoid(-twice) * 1.5957691216057308 * (1.0 + 0.134145 * square)
    else:  # silu
        below = tl.sigmoid(gate)
        value = gate * below
        slope = below * (1.0 + gate * (1.0 - below))
    return value, slope
    # --8<-- [end:activation]


# --8<-- [start:forward]
@triton.jit
def _forward(
    gate, up, hidden, n_columns, gate_stride, up_stride, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    blocks = tl.cdiv(n_columns, BLOCK)  # of a row
    row = (tl.program_id(0) // blocks).to(tl.int64)  # int64: R·F may pass 2³¹
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK] int64: one long row may, too
    inside = column < n_columns  # [BLOCK]
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK] fp32
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK] fp32
    value, _ = _activate(g, ACTIVATION)
    tl.store(hidden + row * n_columns + column, (value * u).to(hidden.dtype.element_ty), mask=inside)
    # --8<-- [end:forward]


# --8<-- [start:backward]
@triton.jit
def _backward(
    dhidden, gate, up, dgate, dup, n_columns, dhidden_stride, gate_stride, up_stride, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    blocks = tl.cdiv(n_columns, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK] int64
    inside = column < n_columns  # [BLOCK]
    dh = tl.load(dhidden + row * dhidden_stride + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK] fp32
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK] fp32
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK] fp32
    value, slope = _activate(g, ACTIVATION)  # again, rather than kept: g has to be read for the slope anyway
    packed = row * n_columns + column  # [BLOCK] int64
    tl.store(dgate + packed, (dh * u * slope).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + packed, (dh * value).to(dup.dtype.element_ty), mask=inside)
    # --8<-- [end:backward]


@torch.library.custom_op("rundoku::gated", mutates_args=())
def _op(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    hidden = _output(gate, up, activation)
    if hidden.numel():
        (g, u), config = _rows(gate, up), config_for(gate)
        _forward[_grid(g, config)](g, u, hidden, g.shape[1], g.stride(0), u.stride(0), activation, **config.launch())
    return hidden


@_op.register_fake
def _output(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("rundoku::gated_backward", mutates_args=())
def _backward_op(dhidden: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    dgate, dup = _gradients(dhidden, gate, up, activation)
    if dgate.numel():
        (dh, g, u), config = _rows(dhidden, gate, up), config_for(gate)
        strides = dh.stride(0), g.stride(0), u.stride(0)
        _backward[_grid(g, config)](dh, g, u, dgate, dup, g.shape[1], *strides, activation, **config.launch())
    return dgate, dup


@_backward_op.register_fake
def _gradients(dhidden: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _grid(rows: torch.Tensor, config: Config) -> tuple[int]:
    return (rows.shape[0] * triton.cdiv(rows.shape[1], config.tiles["BLOCK"]),)


def _rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return [R, F] views whose rows lie side by side in themselves, or one long row of each where all are contiguous.

    A tensor is copied only where its strides allow no such view.
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.reshape(1, -1) for tensor in tensors]
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    return [row if row.stride(1) == 1 or row.shape[1] == 1 else row.contiguous() for row in rows]


def _save(ctx, inputs, output) -> None:
    gate, up, ctx.activation = inputs
    ctx.save_for_backward(gate, up)  # and not act(gate)


def _differentiate(ctx, dhidden):
    dgate, dup = _backward_op(dhidden, *ctx.saved_tensors, ctx.activation)
    by_gate, by_up, _ = ctx.needs_input_grad
    return dgate if by_gate else None, dup if by_up else None, None


_op.register_autograd(_differentiate, setup_context=_save)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """Return act(gate) ⊙ up (Eq. 4 and 5) in the dtype of both: gate, up: [..., F] of one shape; any strides.

    ``activation``: "sigmoid" (GLU), "identity" (Bilinear), "relu" (ReGLU), "gelu" (GEGLU, exact), "gelu_tanh" or "silu" (SwiGLU).
    Halves of one projection, ``gated(*projected.chunk(2, -1))``, are not copied; a last axis with a stride above 1 is.
    Raises ValueError for a wrong shape, dtype or device and an unknown activation.
    """
    expect(activation in gating.ACTIVATIONS, "activation", activation, f"one of {', '.join(gating.ACTIVATIONS)}")
    expect_tensor("gate", gate, dtypes=DTYPES)
    expect(gate.dim() > 0 and gate.shape[-1] > 0, "gate", gate, "shape [..., F] with F at least 1")
    expect_tensor("up", up, like=gate, dtypes=(gate.dtype,))
    expect(up.shape == gate.shape, "up", up, f"the shape {tuple(gate.shape)} of gate")
    return _op(gate, up, activation)


def reference(gate: torch.Tensor, up: torch.Tensor, activation: str = "silu", upcast: bool = True) -> torch.Tensor:
    """Return act(gate) ⊙ up as plain torch computes it: in float64 with ``upcast``, else in the dtype given."""
    if upcast:
        gate, up = gate.double(), up.double()
    return gating.glu(gate, up, activation)


def compile_cases(target: str) -> list[Case]:
    """Return both kernels for every activation at every entry of the target's table."""
    return [case for config in CONFIGS[target] for case in _cases(config)]


def _cases(config: Config) -> list[Case]:
    strides, cases = dict.fromkeys(("n_columns", "gate_stride", "up_stride"), "i32"), []
    rows, width = COUNTED
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        forward = dict.fromkeys(("gate", "up", "hidden"), f"*{dtype}") | strides
        backward = dict.fromkeys(("dhidden", "gate", "up", "dgate", "dup"), f"*{dtype}") | strides | {"dhidden_stride": "i32"}
        for activation in gating.ACTIVATIONS:
            kernels = (("forward", _forward, forward, 3), ("backward", _backward, backward, 5))
            for flops, (direction, kernel, types, tensors) in zip(FLOPS[activation], kernels, strict=True):
                cost = Cost(flops * rows * width, tensors * rows * width * size, "float32", f"R = {rows:,}, F = {width:,}")
                cases.append(Case(f"{activation} {direction}, {dtype}", kernel, types, config, {"ACTIVATION": activation}, cost=cost))
    return cases


def candidates(target: str) -> list[Choice]:
    """Return what could stand in the target's table: other numbers of elements and of warps."""
    return [Choice("every F", config, grid({"BLOCK": (256, 512, 1024, 2048, 4096)}, (1, 2, 4, 8)), _cases) for config in CONFIGS[target]]
