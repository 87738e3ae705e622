"""What ``nox -s bench`` measures of the gates, and the traffic counted, apart from the trainings so that a kernel's edit repeats none."""

from collections.abc import Sequence
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rundoku.gpu.bench import Bench, Call
from rundoku.gpu.peers import LIGER, compare, liger
from rundoku.papers.glu_variants.experiments import FeedForward
from rundoku.papers.glu_variants.gating import GatedFeedForward, glu, two_thirds
from rundoku.show import experiment

MOVED = {"forward": 3, "backward": 5}  # tensors of [R, F] read or written
WIDTHS = (1024, 2048, 4096, 8192, 16_384, 1536, 11_008, 22_016)  # the last three: SmolLM2, LLaMA 7B, LLaMA 65B
PEERS = {"silu": "liger_swiglu"}  # Liger-Kernel's GEGLU is the tanh approximation, another function than the one measured here


def benchmarks() -> list[Bench]:
    """Return what is measured: SwiGLU and GEGLU, both ways, at powers of two, at widths of real models and at one that is odd."""
    sizes = (*((8192, width) for width in WIDTHS), (8191, 2047))
    return [_bench(activation, direction, *size) for size in sizes for activation in ("silu", "gelu") for direction in MOVED]


def _bench(activation: str, direction: str, rows: int, width: int) -> Bench:
    from rundoku.papers.glu_variants import kernel  # needs triton

    config = {}
    if torch.cuda.is_available():
        config = kernel.config_for(torch.empty(0, width, device="cuda")).launch()
    size, work = {"R": rows, "F": width}, rows * width
    prepare = partial(_calls, activation, direction, size, "bfloat16")
    flops, moved = dict(zip(MOVED, kernel.FLOPS[activation], strict=True))[direction], MOVED[direction]
    return Bench(f"{activation} {direction}", size, "bfloat16", float(flops * work), 2.0 * moved * work, prepare, config)


def _calls(
    activation: str, direction: str, size: dict[str, int], dtype: str, device: str
) -> tuple[dict[str, Call], Sequence[torch.Tensor]]:
    from rundoku.papers.glu_variants import kernel  # needs triton

    torch.manual_seed(0)
    gate, up, gradient = (torch.randn(size["R"], size["F"], device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    ours, plain = (partial(way, activation=activation) for way in (kernel.gated, glu))
    peer = liger(PEERS[activation]) if activation in PEERS else None  # its backward writes into gate and up: timed, never looked at
    return compare(ours, plain, (gate, up), (gradient,) if direction == "backward" else (), others={LIGER: peer})


class _Traffic(TorchDispatchMode):
    """Counts the elements that every operator but views and matrix products reads and writes."""

    SILENT = ("detach", "view", "_unsafe_view", "t", "transpose", "chunk", "split", "mm", "addmm", "empty", "new_empty", "ones_like")

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in self.SILENT:
            outputs = result if isinstance(result, tuple | list) else (result,)
            self.elements += sum(tensor.numel() for tensor in (*args, *outputs) if isinstance(tensor, torch.Tensor))
        return result


class _Fused(GatedFeedForward):
    """The gated network with the kernel in the place of activation and product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from rundoku.papers.glu_variants import kernel  # needs triton

        return self.down(kernel.gated(self.gate(x), self.up(x), self.activation))


@experiment
def traffic(*, d_model: int, d_ff: int) -> dict:
    """Return, a token, the elements that activation and product read and write, and those that all of the network keeps for backward."""
    narrow, found = two_thirds(d_ff), {}
    networks = {
        "ReLU": FeedForward(d_model, d_ff, "relu"), "GELU": FeedForward(d_model, d_ff, "gelu"),
        "SwiGLU": GatedFeedForward(d_model, narrow), "SwiGLU, fused": _Fused(d_model, narrow),
    }  # fmt: skip
    for name, ffn in networks.items():
        kept: dict[int, int] = {}
        parameters = {parameter.untyped_storage().data_ptr() for parameter in ffn.parameters()}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept, parameters: set[int] = parameters) -> torch.Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in parameters:
                kept[place] = tensor.numel()
            return tensor

        x = torch.randn(1, d_model, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Traffic() as forward:
            y = ffn(x)
        with _Traffic() as backward:
            torch.autograd.grad(y, [x, *ffn.parameters()], torch.ones_like(y))
        sums = d_model * 3 * (len(list(ffn.parameters())) - 2)  # the two gradients of x, added up: not the gate's
        moved = {"forward": forward.elements, "backward": backward.elements - sums}
        found[name] = moved | {"kept": sum(kept.values()) - d_model}  # x itself is kept by every network
    return found
