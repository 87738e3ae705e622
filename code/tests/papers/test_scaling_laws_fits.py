"""Fits against scipy, numpy and torch's L-BFGS, against laws that the data were made from, and against each other when resampled."""

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rundoku.papers.scaling_laws import CurveLaw, JointLaw, PowerLaw, fit_curves, fit_joint, fit_power_law, interval, resampled

SIZES = torch.logspace(3.5, 6, 9, dtype=torch.float64)


def law(kind, *values):
    return kind(*(torch.tensor(value, dtype=torch.float64) for value in (*values, 0.0)))


def noisy(loss, seed, size=0.004):
    generator = torch.Generator().manual_seed(seed)
    return loss * (size * torch.randn(loss.shape, generator=generator, dtype=torch.float64)).exp()


def grid():
    n, d = torch.meshgrid(torch.logspace(3.5, 5.5, 4), torch.logspace(4, 6, 6), indexing="ij")
    return n.flatten().double(), d.flatten().double()


@settings(deadline=None, max_examples=8, phases=(Phase.generate,))  # each a fit: not worth shrinking
@given(alpha=st.floats(0.06, 1.2), level=st.floats(0.5, 30), floor=st.sampled_from([0.0, 0.1, 1.0, 2.5]))
def test_a_law_without_noise_is_found_again(alpha, level, floor):
    true = law(PowerLaw, alpha, float(SIZES[4]) * level ** (1 / alpha), floor)
    found = fit_power_law(SIZES, true(SIZES), floor=floor > 0)
    assert float(found.exponent) == pytest.approx(alpha, rel=2e-3)
    assert float(found.floor) == pytest.approx(floor, rel=5e-3, abs=5e-3 * level)
    torch.testing.assert_close(found(SIZES), true(SIZES), rtol=1e-5, atol=0)


def test_joint_laws_without_noise_are_found_again():
    n, d = grid()
    for alpha_n, alpha_d in ((0.076, 0.103), (0.3, 0.2), (0.08, 0.5)):
        found = fit_joint(n, d, law(JointLaw, alpha_n, alpha_d, 6.4e6, 1.8e7)(n, d))
        assert [float(v) for v in (found.alpha_n, found.alpha_d, found.n_c, found.d_c)] == pytest.approx(
            [alpha_n, alpha_d, 6.4e6, 1.8e7], rel=1e-4
        )
    for alpha_n, alpha_s in ((0.077, 0.76), (0.2, 0.4)):
        found = fit_curves(n, d, law(CurveLaw, alpha_n, alpha_s, 6.5e13, 2.1e3)(n, d))
        assert [float(v) for v in (found.alpha_n, found.alpha_s)] == pytest.approx([alpha_n, alpha_s], rel=1e-4)
        assert math.log(float(found.n_c)) == pytest.approx(math.log(6.5e13), rel=1e-4)


def test_the_plain_law_is_the_straight_line_of_numpy():
    loss = noisy(law(PowerLaw, 0.076, 8.8e13, 0.0)(SIZES), seed=1)
    slope, start = np.polyfit(SIZES.log().numpy(), loss.log().numpy(), 1)
    found = fit_power_law(SIZES.tolist(), loss.tolist())
    assert float(found.exponent) == pytest.approx(-slope, rel=1e-9)
    assert float(found.scale) == pytest.approx(math.exp(-start / slope), rel=1e-6)
    weights = torch.tensor([3.0, 0, 1, 2, 0, 0, 1, 1, 1])
    slope, _ = np.polyfit(SIZES.log().numpy(), loss.log().numpy(), 1, w=weights.sqrt().numpy())  # numpy weighs errors, not their squares
    assert float(fit_power_law(SIZES, loss, weights=weights).exponent) == pytest.approx(-slope, rel=1e-9)


def floored(k, x):
    return np.logaddexp(k[0] - k[1] * np.log(x), k[2])


def joint(k, n, d):
    return k[1] * np.logaddexp(k[0] / k[1] * (k[2] - np.log(n)), k[3] - np.log(d))


def curves(k, n, s):
    return np.logaddexp(k[0] * (k[2] - np.log(n)), k[1] * (k[3] - np.log(s)))


CASES = [
    (fit_power_law, {"floor": True}, floored, (3.0, 0.3, 0.0)),
    (fit_joint, {}, joint, (0.1, 0.2, 18.0, 15.0)),
    (fit_curves, {}, curves, (0.1, 0.5, 18.0, 7.0)),
]


def data_for(fit, seed):
    if fit is fit_power_law:
        return (SIZES,), noisy(law(PowerLaw, 0.25, 2e5, 1.1)(SIZES), seed)
    n, d = grid()
    true = law(JointLaw, 0.08, 0.15, 1e9, 3e6) if fit is fit_joint else law(CurveLaw, 0.08, 0.6, 1e9, 3e3)
    return (n, d), noisy(true(n, d), seed)


def by_lbfgs(fitted, data, loss):
    """Return the mean squared error that torch's L-BFGS reaches, started near a fit's coefficients."""
    names = [name for name in fitted.__dataclass_fields__ if name != "error"]
    logs = torch.stack([getattr(fitted, name).log() + 0.02 * i for i, name in enumerate(names)]).requires_grad_()
    optimizer = torch.optim.LBFGS([logs], lr=0.5, max_iter=300, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        cost = (type(fitted)(*logs.exp(), logs.new_zeros(()))(*data).log() - loss.log()).square().mean()
        cost.backward()
        return cost

    optimizer.step(closure)
    return float(closure().detach())


@pytest.mark.parametrize(("fit", "options"), [case[:2] for case in CASES])
def test_no_other_optimizer_finds_a_better_fit(fit, options):
    for seed in range(2):
        data, loss = data_for(fit, seed)
        ours = fit(*data, loss, **options)
        assert float((ours(*data).log() - loss.log()).square().mean().sqrt()) == pytest.approx(float(ours.error), rel=1e-9)
        assert float(ours.error) ** 2 <= by_lbfgs(ours, data, loss) * (1 + 1e-6)


@pytest.mark.parametrize(("fit", "options", "formula", "start"), CASES)
def test_scipy_finds_the_same_fit(fit, options, formula, start):
    optimize = pytest.importorskip("scipy.optimize", reason="compares with scipy, which the project itself does not need")
    data, loss = data_for(fit, seed=5)
    ours, arrays = fit(*data, loss, **options), [column.numpy() for column in data]
    theirs = optimize.least_squares(lambda k: formula(k, *arrays) - loss.log().numpy(), start, max_nfev=20_000, xtol=1e-14, ftol=1e-14)
    assert float(ours.error) ** 2 == pytest.approx(2 * theirs.cost / len(loss), rel=1e-6)
    np.testing.assert_allclose(ours(*data).log(), formula(theirs.x, *arrays), atol=1e-6)


@pytest.mark.parametrize(("fit", "options"), [(fit_power_law, {}), (fit_power_law, {"floor": True}), (fit_joint, {}), (fit_curves, {})])
def test_a_batch_of_resampled_fits_is_each_of_them_alone(fit, options):
    data, loss = data_for(fit, seed=4)
    weights = resampled(range(len(loss)), 5, at_least=6, seed=3)
    together = fit(*data, loss, weights=weights, **options)
    for i, row in enumerate(weights):
        drawn = torch.repeat_interleave(torch.arange(len(loss)), row.long())  # the data set with its repetitions written out
        alone = fit(*(column[drawn] for column in data), loss[drawn], **options)
        torch.testing.assert_close(together(*data)[i], alone(*data), rtol=1e-6, atol=0)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(40):
        loss = noisy(law(PowerLaw, 0.076, 8.8e13, 0.0)(SIZES), seed, size=0.01)
        low, high = interval(fit_power_law(SIZES, loss, weights=resampled(range(9), 200, seed=seed)).exponent, level=0.9)
        held += low <= 0.076 <= high
    assert 27 <= held <= 39, "nine points make percentile intervals somewhat too narrow, and no more"


def test_groups_are_drawn_whole():
    weights = resampled([7, 7, 7, 2, 2, 5], 300, at_least=2, seed=1)
    assert weights.shape == (300, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 4]).all() and (weights[:, 0] != weights[:, 3]).any()
    assert (weights[:, [0, 3, 5]].sum(1) == 3).all()
    assert ((weights[:, [0, 3, 5]] > 0).sum(1) >= 2).all()
    torch.testing.assert_close(weights.mean(0), torch.ones(6, dtype=torch.float64), atol=0.15, rtol=0)
    assert torch.equal(weights, resampled([7, 7, 7, 2, 2, 5], 300, at_least=2, seed=1))


def test_intervals_are_quantiles_and_leave_out_what_is_not_finite():
    values = torch.cat((torch.arange(101.0), torch.tensor([math.inf, math.nan])))
    assert interval(values, level=0.9) == pytest.approx((5.0, 95.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_power_law([1.0, 2.0], [1.0, -1.0]), r"loss: \[1.0, -1.0\]; expected one or more positive"),
        (lambda: fit_power_law([1.0, 0.0], [1.0, 1.0]), "x: .* expected one or more positive"),
        (lambda: fit_power_law([1.0, float("nan")], [1.0, 1.0]), "x: "),
        (lambda: fit_power_law([1.0, 2.0, 3.0], [1.0, 1.0]), "x: 3 values; expected 2, one for each loss"),
        (lambda: fit_power_law([2.0, 2.0], [1.0, 1.0]), "x: 1 different values; expected 2 or more"),
        (lambda: fit_power_law([1.0, 2.0], [2.0, 1.0], floor=True), "x: 2 different values; expected 3 or more"),
        (lambda: fit_joint([1.0, 1.0], [1.0, 2.0], [2.0, 1.0]), "parameters: 1 different"),
        (lambda: fit_curves([1.0, 2.0], [3.0, 3.0], [2.0, 1.0]), "steps: 1 different"),
        (lambda: fit_power_law([1.0, 2.0], [2.0, 1.0], weights=torch.ones(3)), r"weights: their shape is \(3,\); expected \[2\]"),
        (lambda: resampled([1, 1, 2, 2]), "groups: 2 different ones; expected 3 or more"),
        (lambda: interval(torch.ones(3), 95), "level: 95; expected a share"),
        (lambda: interval(torch.tensor([math.nan])), "values: none is finite"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
