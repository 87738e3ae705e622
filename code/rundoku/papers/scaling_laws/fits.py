"""Power laws fitted to losses, alone and jointly, with intervals from resampling.

All fits minimise the squared error of log loss. A fit takes ``weights`` [n], or [R, n] for R fits at once: a resampled data set is the
same runs with other weights, so that a thousand resamples are one batched fit. Axes: n runs, R resamples, K coefficients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

Numbers = Tensor | Sequence[float]
Model = Callable[[Tensor], Tensor]  # coefficients [K] -> log loss [n]


@dataclass(frozen=True)
class PowerLaw:
    """L(X) = (scale/X)^exponent + floor: Eq. 1.1–1.3, where floor is 0. Fields are float64 tensors, 0-d or [R]."""

    exponent: Tensor
    scale: Tensor  # X_c
    floor: Tensor  # the irreducible loss
    error: Tensor  # root mean square error of log loss

    def __call__(self, x: Numbers) -> Tensor:
        """Return the loss at x [n]: [n], or [R, n]."""
        log_x = column(x, "x").log()
        return (self.exponent[..., None] * (self.scale.log()[..., None] - log_x)).exp() + self.floor[..., None]


@dataclass(frozen=True)
class JointLaw:
    """L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D: Eq. 1.5."""

    alpha_n: Tensor
    alpha_d: Tensor
    n_c: Tensor
    d_c: Tensor
    error: Tensor

    def __call__(self, parameters: Numbers, tokens: Numbers) -> Tensor:
        """Return the loss of models with ``parameters`` [n] trained on ``tokens`` [n] different tokens."""
        log_n, log_d = column(parameters, "parameters").log(), column(tokens, "tokens").log()
        ratio, alpha_d = (self.alpha_n / self.alpha_d)[..., None], self.alpha_d[..., None]
        limits = ratio * (self.n_c.log()[..., None] - log_n), self.d_c.log()[..., None] - log_d
        return (alpha_d * torch.logaddexp(*limits)).exp()


@dataclass(frozen=True)
class CurveLaw:
    """L(N, S) = (N_c/N)^α_N + (S_c/S)^α_S: Eq. 1.6, the learning curves of all sizes at once."""

    alpha_n: Tensor
    alpha_s: Tensor
    n_c: Tensor
    s_c: Tensor
    error: Tensor

    def __call__(self, parameters: Numbers, steps: Numbers) -> Tensor:
        """Return the loss of models with ``parameters`` [n] after ``steps`` [n] updates."""
        log_n, log_s = column(parameters, "parameters").log(), column(steps, "steps").log()
        size = self.alpha_n[..., None] * (self.n_c.log()[..., None] - log_n)
        return size.exp() + (self.alpha_s[..., None] * (self.s_c.log()[..., None] - log_s)).exp()


def fit_power_law(x: Numbers, loss: Numbers, *, floor: bool = False, weights: Tensor | None = None) -> PowerLaw:
    """Fit L(X) = (X_c/X)^α to losses [n] at x [n]; with ``floor``, L(X) = (X_c/X)^α + L_∞.

    Raises ValueError for numbers that are not positive, lengths that differ, or fewer different x than the law has coefficients.
    """
    (log_x,), log_loss, weights = _checked({"x": x}, loss, weights, 3 if floor else 2)
    # --8<-- [start:power-law]
    middle = log_x.mean()
    u = log_x - middle  # the two coefficients then hardly depend on each other

    def law(k: Tensor) -> Tensor:  # a straight line in log X; a floor bends it
        line = k[0] - k[1] * u
        return torch.logaddexp(line, k[2].expand_as(u)) if floor else line

    slope = (u * (log_loss - log_loss.mean())).sum() / u.square().sum()
    straight = torch.stack((log_loss.mean(), -slope))
    starts = [straight]
    if floor:  # from nearly none to nearly all of the smallest loss
        starts = [_with_floor(straight, share * log_loss.min().exp(), u, log_loss) for share in (0.05, 0.5, 0.8, 0.95)]
    best, error = _best(law, starts, log_loss, weights)
    # --8<-- [end:power-law]
    flat = best[..., 2].exp() if floor else torch.zeros_like(best[..., 0])
    return PowerLaw(best[..., 1], (best[..., 0] / best[..., 1] + middle).exp(), flat, error)


def fit_joint(parameters: Numbers, tokens: Numbers, loss: Numbers, *, weights: Tensor | None = None) -> JointLaw:
    """Fit Eq. 1.5 to losses [n] of models with ``parameters`` [n] trained on ``tokens`` [n]; raises ValueError as `fit_power_law` does."""
    (log_n, log_d), log_loss, weights = _checked({"parameters": parameters, "tokens": tokens}, loss, weights, 2)
    middle_n, middle_d = log_n.mean(), log_d.mean()
    u, v = log_n - middle_n, log_d - middle_d

    def law(k: Tensor) -> Tensor:  # k: log loss of either limit at the middle, α_N, log α_D
        alpha_d = k[3].exp()
        return alpha_d * torch.logaddexp((k[0] - k[2] * u) / alpha_d, k[1] / alpha_d - v)

    level = log_loss.mean()
    starts = [
        torch.stack((level - 0.1, level - 0.3, level.new_tensor(a), level.new_tensor(d).log())) for a in (0.05, 0.2) for d in (0.1, 0.4)
    ]
    best, error = _best(law, starts, log_loss, weights)
    alpha_n, alpha_d = best[..., 2], best[..., 3].exp()
    return JointLaw(alpha_n, alpha_d, (best[..., 0] / alpha_n + middle_n).exp(), (best[..., 1] / alpha_d + middle_d).exp(), error)


def fit_curves(parameters: Numbers, steps: Numbers, loss: Numbers, *, weights: Tensor | None = None) -> CurveLaw:
    """Fit Eq. 1.6 to the losses [n] of models with ``parameters`` [n] after ``steps`` [n]; raises ValueError as `fit_power_law` does."""
    (log_n, log_s), log_loss, weights = _checked({"parameters": parameters, "steps": steps}, loss, weights, 2)
    middle_n, middle_s = log_n.mean(), log_s.mean()
    u, v = log_n - middle_n, log_s - middle_s

    def law(k: Tensor) -> Tensor:
        return torch.logaddexp(k[0] - k[1] * u, k[2] - k[3] * v)

    level = log_loss.mean()
    starts = [level.new_tensor([level - 0.2, a, level - 1.5, s]) for a in (0.05, 0.2) for s in (0.4, 0.8)]
    best, error = _best(law, starts, log_loss, weights)
    n_c, s_c = (best[..., 0] / best[..., 1] + middle_n).exp(), (best[..., 2] / best[..., 3] + middle_s).exp()
    return CurveLaw(best[..., 1], best[..., 3], n_c, s_c, error)


def resampled(groups: Numbers, resamples: int = 1000, *, at_least: int = 3, seed: int = 0) -> Tensor:
    """Return weights [R, n] that draw whole groups with replacement: how often each of n points is in each resampled data set.

    ``groups`` [n] names the run that a point belongs to; points of one learning curve are no independent measurements. Draws with fewer
    than ``at_least`` different groups are drawn again. Raises ValueError where there are fewer groups than that.
    """
    names, member = torch.as_tensor(groups).unique(return_inverse=True)
    if len(names) < max(at_least, 2):
        raise ValueError(f"groups: {len(names)} different ones; expected {max(at_least, 2)} or more")
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(resamples, len(names), dtype=torch.float64)
    todo = torch.arange(resamples)
    while len(todo):
        drawn = torch.randint(len(names), (len(todo), len(names)), generator=generator)
        counts[todo] = torch.nn.functional.one_hot(drawn, len(names)).sum(1).double()
        todo = todo[(counts[todo] > 0).sum(1) < at_least]
    return counts[:, member]


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that holds a share ``level`` of the resampled values [R]; raises ValueError where none is finite."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; expected a share between 0 and 1")
    kept = values[values.isfinite()]
    if not len(kept):
        raise ValueError("values: none is finite; expected the coefficients of resampled fits")
    low, high = kept.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=kept.dtype)).tolist()
    return low, high


def column(values: Numbers, name: str) -> Tensor:
    """Return numbers as a float64 tensor [n]; raises ValueError, naming them, unless all are positive and finite."""
    tensor = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
    if not len(tensor) or not (tensor.isfinite() & (tensor > 0)).all():
        raise ValueError(f"{name}: {tensor.tolist()}; expected one or more positive numbers")
    return tensor


def _checked(columns: dict[str, Numbers], loss: Numbers, weights: Tensor | None, different: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the logarithms of columns and losses, and weights; or raise."""
    log_loss = column(loss, "loss").log()
    logs = []
    for name, values in columns.items():
        log = column(values, name).log()
        if len(log) != len(log_loss):
            raise ValueError(f"{name}: {len(log)} values; expected {len(log_loss)}, one for each loss")
        if len(log.unique()) < different:
            raise ValueError(f"{name}: {len(log.unique())} different values; expected {different} or more, one for each coefficient")
        logs.append(log)
    weights = torch.ones_like(log_loss) if weights is None else weights.double()
    if weights.shape[-1] != len(log_loss) or weights.dim() > 2:
        raise ValueError(f"weights: their shape is {tuple(weights.shape)}; expected [{len(log_loss)}] or [R, {len(log_loss)}]")
    return logs, log_loss, weights


def _with_floor(straight: Tensor, floor: Tensor, u: Tensor, log_loss: Tensor) -> Tensor:
    """Return where to start with a floor: the straight line through what lies above it."""
    above = (log_loss.exp() - floor).log()
    slope = (u * (above - above.mean())).sum() / u.square().sum()
    return torch.stack((above.mean(), -slope, floor.log()))


def _best(law: Model, starts: Sequence[Tensor], log_loss: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients [K] or [R, K], and their root mean square errors.

    All runs together are fitted from every start, and the best of these is where resampled ones start.
    """
    whole = weights if weights.dim() == 1 else weights.sum(0)
    found, costs = _least_squares(lambda k: law(k) - log_loss, torch.stack(list(starts)), whole.expand(len(starts), -1))
    best, cost = found[costs.argmin()], costs.min()
    if weights.dim() == 2:
        best, cost = _least_squares(lambda k: law(k) - log_loss, best.repeat(len(weights), 1), weights)
    return best, (cost / weights.sum(-1)).sqrt()


# --8<-- [start:least-squares]
def _least_squares(residuals: Model, start: Tensor, weights: Tensor, steps: int = 400) -> tuple[Tensor, Tensor]:
    """Minimise the weighted squares of residuals(k) [n] from start [R, K] by Levenberg and Marquardt's method, R problems at once.

    Returns the coefficients [R, K] and the sums of weighted squares [R].
    """

    def cost_of(k: Tensor) -> Tensor:
        return (weights * vmap(residuals)(k).square()).sum(1).nan_to_num(nan=torch.inf)

    coefficients, cost = start, cost_of(start)
    damping = torch.full_like(cost, 1e-2)
    for _ in range(steps):
        jacobian, residual = vmap(jacfwd(residuals))(coefficients), vmap(residuals)(coefficients)  # [R, n, K], [R, n]
        weighted = jacobian.mT * weights[:, None]
        hessian, gradient = weighted @ jacobian, weighted @ residual[..., None]
        size = torch.diag_embed(hessian.diagonal(dim1=1, dim2=2) + 1e-12)
        trial = coefficients - torch.linalg.solve(hessian + damping[:, None, None] * size, gradient)[..., 0]
        new = cost_of(trial)
        better = new < cost
        settled = ~better | (cost - new < 1e-12 * cost)
        coefficients, cost = torch.where(better[:, None], trial, coefficients), torch.where(better, new, cost)
        damping = torch.where(better, damping / 5, damping * 5).clamp(1e-12, 1e12)
        if (settled & ((damping >= 1e12) | better)).all():
            break
    return coefficients, cost
    # --8<-- [end:least-squares]
