# --8<-- [start:setup]
import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table, cost_table
from rundoku.gpu.trace import accesses, steps, traffic
from rundoku.papers.layer_norm import experiments, kernel, layer_norm
from rundoku.show import claim, figure, publish, table, tiles
# --8<-- [end:setup]

# --8<-- [start:by-hand]
x = torch.tensor([1.0, 2.0, 3.0, 6.0])
mean, variance = x.mean(), x.var(correction=0)
print("μ, σ²     ", mean.item(), variance.item())
print("by hand   ", ((x - mean) / variance.sqrt()).numpy().round(4))
print("layer_norm", layer_norm(x, eps=1e-12).numpy().round(4))
# --8<-- [end:by-hand]

# --8<-- [start:invariances]
moved = experiments.invariances(seed=0)
rows = [(m, *(f"{d:.2f}" for _, d in moved[m].items())) for m in moved]
table("invariances", columns=("Method", *experiments.CHANGES), rows=rows)
paper = {  # Table 1, row by row
    "Batch norm": (True, False, True, True, True, False),
    "Weight norm": (True, False, True, False, False, False),
    "Layer norm": (True, True, False, True, False, True),
}
still = {m: tuple(d < 1e-9 for _, d in moved[m].items()) for m in moved}
pairs = [pair for m in paper for pair in zip(still[m], paper[m], strict=True)]
agree = sum(ours == theirs for ours, theirs in pairs)
noise = [d for m in moved for _, d in moved[m].items() if d < 1e-9]
publish(agree=agree, largest_still=max(noise))
# --8<-- [end:invariances]

# --8<-- [start:kernel]
torch.manual_seed(0)
x = torch.randn(64, 197).half()
weight, bias = torch.randn(2, 197).half()
exact, _ = kernel.reference(x, weight, bias)  # float64
kernel_error = error(kernel.layer_norm(x, weight, bias), exact)
torch_error = error(F.layer_norm(x, (197,), weight, bias), exact)
publish(kernel_error=kernel_error, torch_error=torch_error)
# --8<-- [end:kernel]

# --8<-- [start:compiled]
WIDTH = 4096
reports = compile_table(
    "compiled",
    "rundoku.papers.layer_norm.kernel",
    cases=("forward, bf16", "backward, bf16"),
    tiles={"COLUMNS": WIDTH},
)
cost_table(
    "roofline",
    "rundoku.papers.layer_norm.kernel",
    cases=("forward, bf16", "backward, bf16"),
    tiles={"COLUMNS": WIDTH},
)
publish(width=WIDTH, spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

# --8<-- [start:watch]
h = torch.tensor([[1.0, 2, 3, 6], [0, 4, 0, 4], [2, 2, 6, 2], [9, 0, 0, 3], [1, 1, 1, 3]])
ROWS, (R, C) = 2, h.shape
gain, bias = torch.ones(C), torch.zeros(C)
y, mean, rstd = torch.empty(R, C), torch.empty(R), torch.empty(R)
dy, dx = torch.ones(R, C), torch.empty(R, C)
dgain, dbias = torch.empty(2, 2, C)  # one partial sum a program


def forward():
    pointers = (h, None, gain, bias, y, None, mean, rstd)
    kernel._forward[(3,)](*pointers, R, C, C, 0, 1e-5, ROWS, 8)


def backward():
    pointers = (dy, None, h, gain, mean, rstd, dx, dgain, dbias)
    kernel._backward[(2,)](*pointers, R, C, C, 0, C, ROWS, 8)


there, back = accesses(forward), accesses(backward)
with figure("programs", columns=3, size=(6.4, 2.6)) as three:
    for axes, title, owners in zip(
        three,
        ("forward: y", "backward: dx", "partial sums of dw"),
        (there.writer(y), back.writer(dx), back.writer(dgain)),
        strict=True,
    ):
        tiles(axes, owners)
        axes.set(title=title)
# --8<-- [end:watch]

# --8<-- [start:forward-steps]
for step in steps(kernel._forward, forward, program=2):
    if step.name in ("inside", "tile", "mu", "centred", "rho"):
        print(step)
# --8<-- [end:forward-steps]

# --8<-- [start:backward-steps]
for step in steps(kernel._backward, backward, program=0):
    if step.name in ("mu", "dweight_sum"):
        print(step)
# --8<-- [end:backward-steps]

# --8<-- [start:traffic]
R, C = 64, 197  # in float16
x, dy = torch.randn(2, R, C).half()
weight, bias = torch.ones(2, C).half()
inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
moved = traffic(lambda: kernel.layer_norm(*inputs))
y = kernel.layer_norm(*inputs)
moved_back = traffic(lambda: y.backward(dy))
programs = kernel.programs(R, kernel.config_for(x))
statistics, vector = 2 * R * 4, C * 2
formula = 2 * R * C * 2 + 2 * vector + statistics
formula_back = 3 * R * C * 2 + vector + statistics + programs * 2 * C * 4
publish(moved=moved.loaded_once + moved.stored, formula=formula)
publish(moved_back=moved_back.loaded_once + moved_back.stored)
publish(formula_back=formula_back, programs=programs, n_rows=R, n_columns=C)
# --8<-- [end:traffic]

# --8<-- [start:training]
NAMES = {"none": "LSTM", "batch": "batch norm", "layer": "layer norm"}
runs = {n: experiments.character_model(norm=n, seed=0) for n in NAMES}
with figure("training") as axes:
    for norm, run in runs.items():
        axes.plot(run.steps, run.loss, label=NAMES[norm])
    axes.set(xlabel="Training step", ylabel="Validation loss")
    axes.legend()
steps, final = runs["none"].steps, {n: runs[n].loss[-1] for n in runs}
passed = [loss <= final["none"] for loss in runs["layer"].loss]
reached = steps[passed.index(True)]
publish(reached=reached, steps=steps[-1], share=reached / steps[-1])
publish(**{f"{norm}_loss": loss for norm, loss in final.items()})
# --8<-- [end:training]

# --8<-- [start:batch-size]
sizes, train = (128, 4), experiments.digit_classifier
digits = {s: {n: train(norm=n, batch_size=s, seeds=(0, 1)) for n in NAMES} for s in sizes}
with figure("batch-size", columns=2, size=(7, 3.2), sharey=True) as both:
    for axes, size in zip(both, sizes, strict=True):
        for norm, run in digits[size].items():
            label = NAMES[norm].replace("LSTM", "no normalization")
            axes.plot(range(1, 9), run.loss, label=label)
        axes.set(xlabel="Epoch", yscale="log", title=f"batch size {size}")
    both[0].set_ylabel("Training loss")
    both[0].legend()
last = {s: {n: digits[s][n].loss[-1] for n in NAMES} for s in sizes}
behind = {s: last[s]["batch"] / last[s]["layer"] for s in sizes}
publish(large=128, behind_large=behind[128], small=4, behind_small=behind[4])
# --8<-- [end:batch-size]

# --8<-- [start:train-test]
gap = experiments.train_test_gap(batch_size=4, seed=0)
publish(gap_layer=gap.layer, gap_batch=gap.batch)
# --8<-- [end:train-test]

# --8<-- [start:epsilon]
scales = (1e-4, 1e-3, 1e-2, 1.0)
found = experiments.epsilon(scales=scales)
table(
    "epsilon",
    columns=("Deviation of the input", "eps under the root", "eps added to σ"),
    rows=list(zip(scales, found.below, found.added, strict=True)),
    formats=("g", ".3f", ".3f"),
)
# --8<-- [end:epsilon]

# --8<-- [start:variance]
means = (0.0, 100.0, 1000.0, 10_000.0)
found = experiments.one_pass(means=means)
rows = zip(means, found.naive, found.lost, found.ours, strict=True)
columns = ("Mean of the row", "E[x²] − μ²", "negative variance", "E[(x − μ)²]")
formats = (",.0f", ".1e", ".0%", ".1e")
table("variance", columns=columns, rows=list(rows), formats=formats)
narrow, wide = experiments.unbiased(widths=(8, 768)).shrink
publish(overflow=found.zero, shrink_narrow=narrow, shrink_wide=wide)
# --8<-- [end:variance]

# --8<-- [start:axes]
leak = experiments.leak(seed=0)
publish(leak_right=leak.C, leak_wrong=leak["N and C"])
# --8<-- [end:axes]

# --8<-- [start:swapped]
start = experiments.swapped_initialisation(seed=0)
publish(dead_spread=start.zero.spread, dead_gradient=start.zero.gradient)
publish(live_gradient=start.one.gradient)
# --8<-- [end:swapped]

# --8<-- [start:claims]
claim("same-table", ours=agree, holds=agree == 18, kind="exact")
claim("same-at-test", ours=gap.layer, holds=gap.layer == 0, kind="exact", format=".0f")
share = reached / steps[-1]
claim("fewer-steps", ours=share, holds=share < 0.8, kind="reproduced", format=".0%")
lead = min(final["none"], final["batch"]) - final["layer"]
claim("ahead-of-batch-norm", ours=lead, holds=lead > 0.02, kind="reproduced", format=".3f")
robust = last[4]["layer"] <= last[128]["layer"]  # in as many epochs
claim("small-batches", ours=behind[4], holds=robust and behind[4] > 2 > behind[128], kind="reproduced", format=".1f")
# --8<-- [end:claims]
