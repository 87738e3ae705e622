"""What follows from the laws, against numbers of the paper and against minimising the laws themselves."""

import math

import pytest
import torch

from rundoku.papers.scaling_laws import (
    PF_DAY,
    CurveLaw,
    JointLaw,
    allocation_exponents,
    critical_batch_size,
    efficient_frontier,
    minimum_compute,
    minimum_steps,
    overfitting,
    tokens_needed,
    versus_convergence,
)


def law(kind, *values):
    return kind(*(torch.tensor(value, dtype=torch.float64) for value in (*values, 0.0)))


CURVES = law(CurveLaw, 0.076, 0.76, 8.8e13, 2.1e3)
JOINT = law(JointLaw, 0.076, 0.103, 6.4e13, 1.8e13)


def test_the_frontier_is_where_no_other_size_is_better():
    for compute in (1e-3 * PF_DAY, PF_DAY, 1e3 * PF_DAY):
        best = efficient_frontier(compute, CURVES)
        sizes = best.parameters * torch.logspace(-1, 1, 2001, dtype=torch.float64)
        low, high = torch.full_like(sizes, 1e-3), torch.full_like(sizes, 1e3)
        for _ in range(200):  # the loss of Eq. B.3 stands on both sides; bisect for it
            loss = (low * high).sqrt()
            found = CURVES(sizes, compute / (6 * sizes * 2e8 / loss ** (1 / 0.21)))
            low, high = torch.where(found > loss, loss, low), torch.where(found > loss, high, loss)
        at = int(loss.argmin())
        assert float(sizes[at]) == pytest.approx(best.parameters, rel=0.01)
        assert float(loss[at]) == pytest.approx(best.loss, rel=1e-6)
        assert 6 * best.parameters * best.steps * critical_batch_size(best.loss) == pytest.approx(compute, rel=1e-9)
        assert best.loss == pytest.approx((1 + 0.076 / 0.76) * (8.8e13 / best.parameters) ** 0.076, rel=1e-9)  # Eq. B.5


def test_the_frontier_moves_by_the_exponents():
    exponents = allocation_exponents(0.076, 0.76, 0.21)
    near, far = efficient_frontier(PF_DAY, CURVES), efficient_frontier(1e6 * PF_DAY, CURVES)
    assert math.log(far.parameters / near.parameters, 1e6) == pytest.approx(exponents.model)
    assert math.log(far.steps / near.steps, 1e6) == pytest.approx(exponents.steps)
    assert math.log(near.loss / far.loss, 1e6) == pytest.approx(exponents.loss)
    assert exponents.model + exponents.data == pytest.approx(1) and exponents.data == exponents.batch + exponents.steps


def test_numbers_of_the_paper():
    assert allocation_exponents(0.076, 0.76, 0.21).loss == pytest.approx(0.052, abs=5e-4)  # Eq. B.7
    size, steps, compute = versus_convergence(0.076, 0.76)
    assert (size, steps, compute) == pytest.approx((2.7, 0.13, 0.35), rel=0.03)  # Eq. B.12 to B.14
    assert tokens_needed(1e9, JOINT) == pytest.approx(5e3 * 1e9**0.74, rel=0.15)  # Eq. 4.4, which is rounded
    assert critical_batch_size(3.0) / critical_batch_size(3.0 / 0.87) == pytest.approx(2, rel=0.05)  # Fig. 10
    assert critical_batch_size(3.0) == pytest.approx(2e8 * 3 ** (-1 / 0.21))


def test_the_data_needed_leaves_the_overfitting_asked_for():
    for parameters in (1e5, 1e9):
        for share in (0.001, 0.02, 0.5):
            assert overfitting(parameters, tokens_needed(parameters, JOINT, share), JOINT) == pytest.approx(share)
        tokens = 3e9
        at_infinity = float(JOINT([parameters], [1e40])[0])
        assert overfitting(parameters, tokens, JOINT) == pytest.approx(float(JOINT([parameters], [tokens])[0]) / at_infinity - 1)


def test_batches_trade_steps_for_compute():
    steps, batch, critical = 1000.0, 2.0**19, 1.5e6
    least, cheapest = minimum_steps(steps, batch, critical), minimum_compute(steps * batch, batch, critical)  # compute a token: 1
    assert (steps / least - 1) * (steps * batch / cheapest - 1) == pytest.approx(1)  # Eq. 5.1
    assert cheapest / least == pytest.approx(critical)  # Eq. 5.2
    assert minimum_steps(steps, 1e12, critical) == pytest.approx(steps, rel=1e-5)
    assert minimum_compute(1e18, 1.0, critical) == pytest.approx(1e18, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: allocation_exponents(0.0, 0.7, 0.2), "alpha_n: 0.0; expected a positive number"),
        (lambda: critical_batch_size(-1.0), "loss: -1.0"),
        (lambda: minimum_steps(10, 0, 5), "batch: 0"),
        (lambda: minimum_compute(1.0, 1.0, math.nan), "critical: nan"),
        (lambda: efficient_frontier(math.inf, CURVES), "compute: inf"),
        (lambda: overfitting(1e6, 0, JOINT), "tokens: 0"),
        (lambda: tokens_needed(1e6, JOINT, share=0), "share: 0"),
        (lambda: versus_convergence(0.1, 0.7, 0.0), "excess: 0.0"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
