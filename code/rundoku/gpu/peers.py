"""What a benchmark times beside ours: plain torch, the same compiled by torch, and Liger-Kernel's and flash-attention's Triton operators
where they can be imported.

``prepare`` of a ``Bench`` (a room's ``benchmarks.py``) usually ends in ``return compare(ours, plain, inputs, gradients, others={...})``.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rundoku.gpu.bench import OURS, PLAIN, Call

Tensors = Sequence[torch.Tensor | None]
LIGER, FLASH = "Liger-Kernel", "flash-attention"
_FLASH_MODULES = {
    "layer_norm_fn": "ops.triton.layer_norm",
    "rms_norm_fn": "ops.triton.layer_norm",
    "apply_rotary_emb": "layers.rotary",
    "cross_entropy_loss": "ops.triton.cross_entropy",
}


def compare(
    ours: Callable,
    plain: Callable,
    inputs: Tensors,
    gradients: Sequence[torch.Tensor] = (),
    *,
    others: Mapping[str, Callable | None] | None = None,
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    """Return the calls of every provider, and what ``plain`` computes in float64, as ``Bench.prepare`` promises them.

    Without ``gradients`` a call computes the function of ``inputs``, with them the backward pass alone: of its first outputs, one gradient
    each, to every input. Each of ``others``, by provider and None where it is missing, gets copies of its own, as ``layout`` makes them,
    since some kernels write into their inputs.
    """
    doubles = [None if tensor is None else tensor.double() for tensor in inputs]
    calls = {name: _call(way, inputs, gradients) for name, way in ((OURS, ours), (PLAIN, plain), ("torch.compile", torch.compile(plain)))}
    for name, way in (others or {}).items():
        if way:
            own = [None if tensor is None else layout(tensor) for tensor in inputs]
            calls[name] = _call(way, own, [layout(gradient) for gradient in gradients])
    return calls, _call(plain, doubles, gradients)()


def _call(way: Callable, inputs: Tensors, gradients: Sequence[torch.Tensor]) -> Call:
    if not gradients:
        return lambda: _outputs(way(*inputs))

    @functools.cache
    def graph() -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """Run the forward pass when the call is made first: where a peer fails there, its call does, and it alone is left out."""
        leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs]
        outputs = _outputs(way(*leaves))[: len(gradients)]
        handed = [gradient.to(output.dtype) for gradient, output in zip(gradients, outputs, strict=True)]
        return outputs, [leaf for leaf in leaves if leaf is not None], handed

    return lambda: torch.autograd.grad(*graph(), retain_graph=True)


def _outputs(found: Any) -> tuple[torch.Tensor, ...]:
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def liger(name: str) -> Any:
    """Return a function of Liger-Kernel (``liger_layer_norm``), or say once that it is left out and return None."""
    return _found(LIGER, "liger_kernel.transformers.functional", name)


def flash_operator(name: str) -> Any:
    """Return one of flash-attention's Triton operators (``layer_norm_fn``), or say once that it is left out and return None."""
    return _found(FLASH, f"flash_attn.{_FLASH_MODULES[name]}", name)


@functools.cache
def _found(provider: str, module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as problem:  # their imports look for devices, versions and compiled parts of their own, and fail in many ways
        print(f"bench: {provider}'s {name} is left out: {problem}")
        return None
