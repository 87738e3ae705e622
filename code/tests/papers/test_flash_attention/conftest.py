"""What the tests of the three forms share: memory poisoned with NaN, and the rule that results are held to."""

import pytest
import torch

from rundoku.gpu.check import error, twice_rule
from rundoku.gpu.launch import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
# A row that sees one key has no gradient through its score, and plain torch hits that zero. dP − D is a difference of two dot products
# that are equal but for rounding (Eq. 4), in float32 some units of 2⁻²³ times |do|·|v|.
CANCELLATION = 4e-6


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fill whatever is allocated with NaN, so that an element left unwritten is seen."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def _surrounded(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    whole = torch.full([size + 2 for size in shape], float("nan"), dtype=dtype)
    inner = whole[tuple(slice(1, -1) for _ in shape)]
    inner.copy_(torch.randn(*shape, dtype=torch.float64, generator=generator))
    return inner.to(DEVICE) if DEVICE != "cpu" else inner


@pytest.fixture(scope="session")
def surrounded():
    """Return a function that makes random numbers in the midst of NaN: a read past the end of any axis is seen."""
    return _surrounded


def _hold(tensors, grads, ours, plain, exact):
    def run(call, dtype):
        leaves = [x.detach().to(dtype).requires_grad_(grads is not None) for x in tensors]
        out, lse = call(*leaves)
        if grads is None:
            return out, lse
        loss = (out * grads[0].to(out)).sum()
        if grads[1] is not None:
            loss = loss + (lse.masked_fill(lse == -float("inf"), 0.0) * grads[1].to(lse)).sum()
        return out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)

    dtype = tensors[0].dtype
    runs = run(ours, dtype), run(plain, dtype), run(exact, torch.float64)
    for name, a, p, e in zip(("out", "lse", "dq", "dk", "dv"), *runs, strict=False):
        if name == "lse":  # −∞ for the same rows; the differences are of the others
            assert torch.equal(a == -float("inf"), e == -float("inf"))
            a, p, e = (x.masked_fill(e == -float("inf"), 0.0) for x in (a, p, e))
        rounded = e.to(a.dtype)  # nothing in this precision is closer than this; in a tiny case plain torch may be, by luck
        p = p if error(p, e) >= error(rounded, e) else rounded
        assert twice_rule(a, p, e) is None or (name in ("dq", "dk") and error(a, e) < CANCELLATION), f"{name}: {twice_rule(a, p, e)}"
    return runs[0]


@pytest.fixture(scope="session")
def hold():
    """Return a function that holds out, lse and, where `grads` of out and lse are given, the gradients of all tensors to the 2× rule.

    `ours`, `plain` (in the tensors' dtype) and `exact` (given them in float64) take the tensors and return out and lse.
    """
    return _hold
