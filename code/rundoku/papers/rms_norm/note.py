# --8<-- [start:setup]
from statistics import mean
from textwrap import shorten

import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.roofline import bound
from rundoku.gpu.show import compile_table, cost_table
from rundoku.gpu.targets import CARDS
from rundoku.gpu.trace import accesses, steps, traffic
from rundoku.papers.layer_norm import layer_norm
from rundoku.papers.layer_norm.benchmarks import COSTS as LAYER_NORM_COSTS
from rundoku.papers.layer_norm.experiments import CHANGES
from rundoku.papers.rms_norm import benchmarks, experiments, kernel, rms_norm
from rundoku.papers.rms_norm.norm import units
from rundoku.show import claim, figure, publish, table, tiles
# --8<-- [end:setup]

# --8<-- [start:by-hand]
x = torch.tensor([1.0, 2.0, 3.0, 6.0])
print("RMS       ", x.square().mean().sqrt().item())
print("by hand   ", (x / x.square().mean().sqrt()).numpy().round(4))
print("rms_norm  ", rms_norm(x, eps=1e-12).numpy().round(4))
print("mean 0    ", rms_norm(x - x.mean(), eps=1e-12).numpy().round(4))
print("layer_norm", layer_norm(x, eps=1e-12).numpy().round(4))
# --8<-- [end:by-hand]

# --8<-- [start:invariances]
moved = experiments.invariances(seed=0)
rows = [(m, *(f"{d:.2f}" for _, d in moved[m].items())) for m in moved]
table("invariances", columns=("Method", *CHANGES), rows=rows)
paper = {  # Table 1, row by row
    "Batch norm": (True, False, True, True, True, False),
    "Weight norm": (True, False, True, False, False, False),
    "Layer norm": (True, True, False, True, False, True),
    "RMSNorm": (True, False, False, True, False, True),
    "pRMSNorm": (True, False, False, True, False, True),
}
still = {m: tuple(d < 1e-9 for _, d in moved[m].items()) for m in moved}
agree = sum(a == b for m in paper for a, b in zip(still[m], paper[m], strict=True))
publish(agree=agree)
# --8<-- [end:invariances]

# --8<-- [start:gradient]
scales = (0.25, 0.5, 1.0, 2.0, 4.0)
sizes = experiments.gradients(scales=scales, seed=0)
with figure("gradient", columns=2, size=(7, 3.0), sharey=True) as both:
    for axes, what in zip(both, ("weight", "data"), strict=True):
        axes.loglog(scales, sizes.none[what], "o-", label="no normalization", base=2)
        axes.loglog(scales, sizes.rms[what], "s-", label="RMSNorm", base=2)
        axes.set_xlabel({"weight": "Scale of the weights", "data": "Scale of the data"}[what])
    both[0].set_ylabel("Gradient of W")
    both[0].legend()
publish(scale=scales[-1], shrunk=sizes.rms.weight[-1])
# --8<-- [end:gradient]

# --8<-- [start:kernel]
torch.manual_seed(0)
x, residual = torch.randn(2, 64, 197).half()
weight = torch.randn(197).half()
exact, _ = kernel.reference(x, weight, residual=residual)  # float64
y, h = kernel.rms_norm(x, weight, residual=residual)
publish(kernel_error=error(y, exact))
publish(torch_error=error(F.rms_norm(x + residual, (197,), weight, eps=1e-6), exact))
# --8<-- [end:kernel]

# --8<-- [start:compiled]
WIDTH = 4096
reports = compile_table(
    "compiled",
    "rundoku.papers.rms_norm.kernel",
    cases=("forward, bf16", "backward, bf16"),
    tiles={"COLUMNS": WIDTH},
)
cost_table(
    "roofline",
    "rundoku.papers.rms_norm.kernel",
    cases=("forward, bf16", "backward, bf16"),
    tiles={"COLUMNS": WIDTH},
)
publish(width=WIDTH, spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

# --8<-- [start:watch]
x = torch.tensor([[1.0, 4, 2, 8], [1, 0, 1, 2], [1, 1, 0, 2]]).half()
residual = torch.tensor([[1, 0, 2, 0.002], [0, 1, 2, 3], [1, 1, 2, 0]]).half()
dy = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]]).half()
dh = torch.ones(3, 4).half()
weight, (R, C) = torch.full((4,), 2.0), x.shape
y, h, dx = torch.empty(3, R, C).half()
rstd, zero = torch.empty(R), torch.zeros(R)
dweight, wide = torch.empty(2, 2, C)  # one partial sum a program


def forward():
    tensors = (x, residual, weight, y, h, rstd)
    kernel._forward[(R,)](*tensors, R, C, C, C, 1e-6, 1, 4)


def backward():
    tensors = (dy, dh, h, weight, rstd, dx, dweight)
    kernel._backward[(2,)](*tensors, R, C, C, C, C, 1, 4)


def wide_sums():
    tensors = (dy, h, zero, rstd, wide, None)
    kernel._sums[(2, 2)](*tensors, R, C, C, C, 1, 2)


forward()
back, apart = accesses(backward), accesses(wide_sums)
numbers = apart.writer(wide) + 2 * apart.writer(wide, axis=1)
owners = (back.writer(dx), back.writer(dweight), numbers)
titles = ("dx", "partial sums of dw", "the same for wide rows")
with figure("programs", columns=3, size=(6.4, 1.9)) as three:
    for axes, owner, title in zip(three, owners, titles, strict=True):
        tiles(axes, owner)
        axes.set(title=title)
publish(split=kernel.SPLIT_ABOVE)
# --8<-- [end:watch]


# --8<-- [start:forward-steps]
def show(kernel, call, names):
    for step in steps(kernel, call):
        if step.name in names:
            source = shorten(step.source, 62, placeholder=" …")
            row = str(step.value.ravel().round(3))
            print(f"{step.dtype} {row:28}{source}")


show(kernel._forward, forward, ("tile", "rounded", "rho", "result"))
# --8<-- [end:forward-steps]

# --8<-- [start:backward-steps]
show(kernel._backward, backward, ("rho", "dweight_sum", "grad", "along", "result"))
# --8<-- [end:backward-steps]

# --8<-- [start:traffic]
R, C = 64, 197  # in float16
x, residual, dy, dh = torch.randn(4, R, C).half()
inputs = [tensor.requires_grad_() for tensor in (x, torch.ones(C).half(), residual)]


def normalised():
    return kernel.rms_norm(*inputs[:2], residual=inputs[2])


there, both = traffic(normalised), normalised()
back = traffic(lambda: torch.autograd.backward(both, (dy, dh)))
programs = kernel.programs(R, kernel.config_for(x))
each = 4 * R * C * 2 + C * 2 + R * 4  # four tensors, the gain, and one float32 a row
publish(forward_moved=there.loaded_once + there.stored, forward_formula=each)
publish(backward_moved=back.loaded_once + back.stored, programs=programs)
publish(backward_formula=each + programs * C * 4, n_rows=R, n_columns=C)
# --8<-- [end:traffic]


# --8<-- [start:cost]
def passes(costs):  # over memory, by the fused kernels: forward, and forward with backward
    return costs["forward"][1], costs["forward"][1] + costs["backward"][1]


apart = experiments.traffic(rows=512, width=1024)
fused = {m: passes(benchmarks.COSTS) for m in apart} | {"LayerNorm": passes(LAYER_NORM_COSTS)}
rows = [(m, a.operations, a.forward, a.both, *fused[m]) for m, a in apart.items()]
columns = ("Method", "Operations", "Apart", "Apart, with backward", "Fused", "Fused, with backward")
table("cost", columns=columns, rows=rows, formats=("", *[".1f"] * 3, "d", "d"))
least = bound(CARDS["NVIDIA H200"], flops=4, bytes=4, dtype="float32")  # an element in bfloat16
publish(intensity=least.intensity, ridge=least.ridge)
publish(apart_saved=1 - apart.RMSNorm.forward / apart.LayerNorm.forward)
publish(apart_partial=1 - apart.pRMSNorm.forward / apart.LayerNorm.forward)
# --8<-- [end:cost]

# --8<-- [start:training-runs]
NAMES = {"none": "no normalization", "layer": "LayerNorm", "rms": "RMSNorm", "partial": "pRMSNorm"}
SEEDS = range(2)


def over_seeds(**case):
    return experiments.character_model.each([{**case, "seed": seed} for seed in SEEDS])


runs = {n: over_seeds(norm=n) for n in NAMES}
off = {n: over_seeds(norm=n, center=0.2) for n in ("none", "layer", "rms")}
last = {n: [run.loss[-1] for run in runs[n]] for n in runs}  # seed by seed
last |= {f"off_{n}": [run.loss[-1] for run in off[n]] for n in off}
final = {n: mean(losses) for n, losses in last.items()}
publish(**{f"{n}_loss": loss for n, loss in final.items()}, seeds=len(SEEDS))
publish(apart=max(abs(a - b) for a, b in zip(last["rms"], last["layer"], strict=True)))
part = experiments.SHARE  # of the cell's 64 units, and of its four gates' 256
publish(few=units(64, part), many=units(4 * 64, part))
# --8<-- [end:training-runs]

# --8<-- [start:training]
with figure("training", columns=2, size=(7, 3.2), sharey=True) as both:
    for axes, part in zip(both, (runs, off), strict=True):
        for i, (n, found) in enumerate(part.items()):
            for run in found:
                label = NAMES[n] if run is found[0] else None
                style = f"C{i}--" if n == "rms" else f"C{i}-"
                axes.plot(run.steps, run.loss, style, linewidth=1, label=label)
        axes.set_xlabel("Training step")
    both[0].set(ylabel="Validation loss", title="usual start")
    both[1].set(title="weights centered at 0.2")
    both[0].legend()
# --8<-- [end:training]

# --8<-- [start:real-model]
real = experiments.real_model(tokens=160)
shown = ("RMSNorm", "LayerNorm", "pRMSNorm")
rows = [(n, real.loss[n]) for n in shown]
table("norms", columns=("Normalization", "Loss"), rows=rows, formats=("", ".2f"))
publish(**{f"real_{n}": real.loss[n] for n in shown}, norms=len(real.first_share))
publish(mean_share=real.mean_share, chance=1 / 576, top=real.top)
publish(layers_above=max(real.share[1]) * 576)
# --8<-- [end:real-model]

# --8<-- [start:stream]
publish(last_gain=real.gains[2][-1])
with figure("stream", columns=2, size=(7, 3.2)) as (left, right):
    low, middle, high = real.share
    left.fill_between(range(61), low, high, alpha=0.25, linewidth=0)
    left.plot(middle, label="later tokens")
    left.plot(real.first_share, "--", label="first token")
    left.axhline(1 / 576, linestyle=":", color="C2", label="chance")
    left.yaxis.set_major_formatter("{x:.1%}")
    left.set(xlabel="Norm layer", ylabel="Share of the mean")
    left.legend()
    least, low, middle, high, most = (part[:-1] for part in real.gains)
    right.fill_between(range(60), low, high, alpha=0.25, linewidth=0)
    right.plot(range(60), middle, "C0", range(60), least, "C0:", range(60), most, "C0:")
    right.set(xlabel="Norm layer", ylabel="Gain")
# --8<-- [end:stream]

# --8<-- [start:epsilon]
NAMED = {"eps 1e-08": 1e-8, "eps 1e-06": 1e-6, "RMSNorm": 1e-5, "eps 0.001": 1e-3, "eps 0.01": 1e-2}
rows = [(f"{eps:g}", real.loss[name]) for name, eps in NAMED.items()]
table("epsilon", columns=("eps", "Loss"), rows=rows, formats=("", ".4f"))
publish(added=abs(real.loss["eps added"] - real.loss.RMSNorm), first_peak=max(real.first_peak))
publish(big_eps=real.loss["eps 0.01"] - real.loss.RMSNorm, half=real.loss.half)
# --8<-- [end:epsilon]

# --8<-- [start:cast]
cast = experiments.cast_order(rows=4096)
publish(differ=cast.differ, worse=cast.late / cast.early - 1, nan=cast.nan)
# --8<-- [end:cast]

# --8<-- [start:loaded]
swap = experiments.loaded(epochs=8, seed=0)
rows = [("LayerNorm, as trained", swap.layer), ("RMSNorm, biases dropped", swap.dropped)]
rows += [("RMSNorm, biases kept", swap.kept), ("and weights centered", swap.centered)]
table("loaded", columns=("Normalization", "Test error"), rows=rows, formats=("", ".1%"))
publish(more_wrong=round(500 * (swap.kept - swap.layer)), tested=500)
publish(moved=swap.moved, plus_one=real.loss["1 + gain"], median_gain=sorted(real.gains[2])[30])
# --8<-- [end:loaded]

# --8<-- [start:claims]
claim("same-table", ours=agree, holds=agree == 30, kind="exact")
product = scales[-1] * sizes.rms.weight[-1]
claim("implicit-rate", ours=product, holds=abs(product - 1) < 1e-9, kind="exact", format=".3f")
gain = final["none"] - final["layer"]  # what normalization brings
lost, part = final["rms"] - final["layer"], final["partial"] - final["layer"]
claim("as-good", ours=lost, holds=lost < gain / 5, kind="reproduced", format=".3f")
claim("part-is-enough", ours=part, holds=part < gain / 5, kind="reproduced", format=".3f")
behind = final["off_rms"] - final["off_layer"]
claim("robust-start", ours=behind, holds=behind <= 0, kind="reproduced", format=".2f")
share = real.mean_share
claim("mean-is-small", ours=share, holds=share < 0.01, kind="reproduced", format=".2%")
saved = 1 - fused["RMSNorm"][1] / fused["LayerNorm"][1]  # of the fused kernels' traffic
claim("faster", ours=saved, holds=saved >= 0.07, kind="reproduced", format=".0%")
# --8<-- [end:claims]
