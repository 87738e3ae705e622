"""Whether a kernel is right: the rule that tests and benchmarks share."""

import torch

EPSILON = 1e-6  # of the largest value: where plain torch happens to hit the exact value, twice its error would be nothing


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest absolute difference in float64; NaN counts as infinite. Raises ValueError for unequal shapes."""
    if found.shape != exact.shape:
        raise ValueError(f"found: got shape {tuple(found.shape)}, expected {tuple(exact.shape)}")
    if not found.numel():
        return 0.0
    largest = (found.double() - exact.double()).abs().max()
    return float("inf") if largest.isnan() else largest.item()


def twice_rule(found: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, terms: float = 0.0, unit: float = 0.0) -> str | None:
    """Return None where ``found`` is at most twice as far from the float64 result as plain torch in the same dtype, else what is wrong.

    ``terms`` is the size of the terms that the result is the difference of, where they are far larger than it. ``unit`` is what one
    rounding of the inputs' dtype may cost, relative to the largest value: among few elements plain torch may meet them all by luck.
    """
    ours, theirs = error(found, exact), error(plain, exact)
    scale = exact.double().abs().max().item() if exact.numel() else 0.0
    allowed = 2 * theirs + unit * scale + EPSILON * max(scale, terms, 1.0)
    return None if ours <= allowed else f"error {ours:.3g}, plain torch {theirs:.3g}, allowed {allowed:.3g}"
