"""The roofline: the least time a card needs for so many floating-point operations and so many bytes (Williams et al., 2009)."""

from dataclasses import dataclass

from rundoku.gpu.targets import Card


@dataclass(frozen=True)
class Bound:
    """The lower bound on a kernel's time, and what sets it."""

    seconds: float
    by: str  # "memory" or "compute"
    intensity: float  # FLOP per byte
    ridge: float  # the intensity at which the card turns from memory- to compute-bound

    @property
    def share(self) -> float:
        """Return the part of the card's peak FLOP/s that can be reached at this intensity, at most 1."""
        return min(1.0, self.intensity / self.ridge)


def bound(card: Card, *, flops: float, bytes: float, dtype: str) -> Bound:
    """Return the least seconds that ``card`` needs for ``flops`` in ``dtype`` and ``bytes`` to and from its memory.

    Raises ValueError for a dtype whose peak is not listed, and where nothing is moved.
    """
    if dtype not in card.flops:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(card.flops)}")
    if bytes <= 0 or flops < 0:
        raise ValueError(f"bytes, flops: got {bytes!r} and {flops!r}, expected more than 0 bytes and no negative FLOP")
    compute, memory = flops / card.flops[dtype], bytes / card.bandwidth
    return Bound(max(compute, memory), "compute" if compute > memory else "memory", flops / bytes, card.flops[dtype] / card.bandwidth)
