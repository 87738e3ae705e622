"""What a benchmark times beside ours: plain torch, the same compiled by torch, and Liger-Kernel where it can be imported.

``prepare`` of a ``Bench`` (a room's ``benchmarks.py``) usually ends in ``return compare(ours, plain, inputs, gradients, liger=...)``.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rundoku.gpu.bench import OURS, PLAIN, Call

Tensors = Sequence[torch.Tensor | None]


def compare(
    ours: Callable,
    plain: Callable,
    inputs: Tensors,
    gradients: Sequence[torch.Tensor] = (),
    *,
    liger: Callable | None = None,
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    """Return the calls of every provider, and what ``plain`` computes in float64, as ``Bench.prepare`` promises them.

    Without ``gradients`` a call computes the function of ``inputs``, with them the backward pass alone: of its first outputs, one gradient
    each, to every input. ``liger`` gets copies of its own, as ``layout`` makes them, since some of its kernels write into their inputs.
    """
    doubles = [None if tensor is None else tensor.double() for tensor in inputs]
    calls = {name: _call(way, inputs, gradients) for name, way in ((OURS, ours), (PLAIN, plain), ("torch.compile", torch.compile(plain)))}
    if liger:
        own = [None if tensor is None else layout(tensor) for tensor in inputs]
        calls["Liger-Kernel"] = _call(liger, own, [layout(gradient) for gradient in gradients])
    return calls, _call(plain, doubles, gradients)()


def _call(way: Callable, inputs: Tensors, gradients: Sequence[torch.Tensor]) -> Call:
    if not gradients:
        return lambda: _outputs(way(*inputs))
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs]
    outputs = _outputs(way(*leaves))[: len(gradients)]
    wanted = [leaf for leaf in leaves if leaf is not None]
    handed = [gradient.to(output.dtype) for gradient, output in zip(gradients, outputs, strict=True)]
    return lambda: torch.autograd.grad(outputs, wanted, handed, retain_graph=True)


def _outputs(found: Any) -> tuple[torch.Tensor, ...]:
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


@functools.cache
def liger(name: str) -> Any:
    """Return a function of Liger-Kernel (``liger_layer_norm``), or say once that it is left out and return None."""
    try:
        return getattr(importlib.import_module("liger_kernel.transformers.functional"), name)
    except Exception as problem:  # its import looks for devices and versions of its own, and fails in many ways
        print(f"bench: Liger-Kernel's {name} is left out: {problem}")
        return None
