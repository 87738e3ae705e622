# --8<-- [start:setup]
import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table
from rundoku.papers.layer_norm import experiments, kernel, layer_norm
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:by-hand]
x = torch.tensor([1.0, 2.0, 3.0, 6.0])
mean, variance = x.mean(), x.var(correction=0)
print("μ  =", mean.item(), "  σ² =", variance.item())
print("by hand   ", ((x - mean) / variance.sqrt()).tolist())
print("layer_norm", layer_norm(x, eps=1e-12).tolist())
publish(hand_mean=mean, hand_variance=variance)
# --8<-- [end:by-hand]

# --8<-- [start:invariances]
moved = experiments.invariances(seed=0)
rows = [(method, *(f"{distance:.2f}" for _, distance in changes.items())) for method, changes in moved.items()]
table("invariances", columns=("Method", *experiments.CHANGES), rows=rows)
found = {method: [distance < 1e-9 for _, distance in changes.items()] for method, changes in moved.items()}
paper = {  # Table 1, row by row
    "Batch norm": [True, False, True, True, True, False],
    "Weight norm": [True, False, True, False, False, False],
    "Layer norm": [True, True, False, True, False, True],
}
agree = sum(ours == theirs for method in paper for ours, theirs in zip(found[method], paper[method], strict=True))
publish(agree=agree, largest_still=max(d for c in moved.as_dict().values() for d in c.values() if d < 1e-9))
# --8<-- [end:invariances]

# --8<-- [start:kernel]
torch.manual_seed(0)
x, weight, bias = torch.randn(64, 197).half(), torch.randn(197).half(), torch.randn(197).half()
exact, _ = kernel.reference(x, weight, bias)  # float64
kernel_error = error(kernel.layer_norm(x, weight, bias), exact)
torch_error = error(F.layer_norm(x, (197,), weight, bias), exact)
publish(kernel_error=kernel_error, torch_error=torch_error)
# --8<-- [end:kernel]

# --8<-- [start:compiled]
WIDTH = 4096
cases = ("forward, bf16", "backward, bf16")
reports = compile_table("compiled", "rundoku.papers.layer_norm.kernel", cases=cases, tiles={"COLUMNS": WIDTH})
publish(width=WIDTH, spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

# --8<-- [start:training]
LABELS = {"none": "LSTM", "batch": "with batch norm", "layer": "with layer norm"}
runs = {norm: experiments.character_model(norm=norm, seed=0) for norm in LABELS}
with figure("training") as axes:
    for norm, run in runs.items():
        axes.plot(run.steps, run.loss, label=LABELS[norm])
    axes.set(xlabel="Training step", ylabel="Validation loss")
    axes.legend()
goal = runs["none"].loss[-1]  # the plain LSTM's best
steps = runs["layer"].steps
reached = next(step for step, loss in zip(steps, runs["layer"].loss, strict=True) if loss <= goal)
publish(plain_loss=goal, batch_loss=runs["batch"].loss[-1], layer_loss=runs["layer"].loss[-1])
publish(reached=reached, steps=steps[-1], share=reached / steps[-1])
# --8<-- [end:training]

# --8<-- [start:batch-size]
SIZES = (128, 4)
digit = {(norm, size): experiments.digit_classifier(norm=norm, batch_size=size, seeds=(0, 1)) for norm in LABELS for size in SIZES}
NAMES = {"none": "no normalization", "batch": "batch norm", "layer": "layer norm"}
with figure("batch-size", columns=2, size=(7, 3.2), sharey=True) as both:
    for axes, size in zip(both, SIZES, strict=True):
        for norm, name in NAMES.items():
            axes.plot(range(1, 9), digit[norm, size].loss, label=name)
        axes.set(xlabel="Epoch", yscale="log", title=f"batch size {size}")
    both[0].set_ylabel("Training loss")
    both[0].legend()
behind = {size: digit["batch", size].loss[-1] / digit["layer", size].loss[-1] for size in SIZES}
publish(large=SIZES[0], small=SIZES[1], behind_small=behind[4], behind_large=behind[128])
# --8<-- [end:batch-size]

# --8<-- [start:train-test]
gap = experiments.train_test_gap(batch_size=4, seed=0)
publish(gap_layer=gap.layer, gap_batch=gap.batch)
# --8<-- [end:train-test]

# --8<-- [start:epsilon]
SCALES = (1e-4, 1e-3, 1e-2, 1.0)
eps = experiments.epsilon(scales=SCALES)
table(
    "epsilon",
    columns=("Deviation of the input", "eps under the root", "eps added to σ"),
    rows=list(zip(SCALES, eps.below, eps.added, strict=True)),
    formats=("g", ".3f", ".3f"),
)
# --8<-- [end:epsilon]

# --8<-- [start:variance]
MEANS = (0.0, 100.0, 1000.0, 10_000.0)
variance = experiments.one_pass(means=MEANS)
table(
    "variance",
    columns=("Mean of the row", "E[x²] − μ²", "rows with negative variance", "E[(x − μ)²]"),
    rows=list(zip(MEANS, variance.naive, variance.lost, variance.ours, strict=True)),
    formats=(",.0f", ".1e", ".0%", ".1e"),
)
publish(overflow=variance.zero)
shrink = experiments.unbiased(widths=(8, 768)).shrink
publish(shrink_narrow=shrink[0], shrink_wide=shrink[1])
# --8<-- [end:variance]

# --8<-- [start:axes]
leak = experiments.leak(seed=0)
publish(leak_right=leak.C, leak_wrong=leak["N and C"])
# --8<-- [end:axes]

# --8<-- [start:swapped]
start = experiments.swapped_initialisation(seed=0)
publish(dead_spread=start.zero.spread, dead_gradient=start.zero.gradient, live_gradient=start.one.gradient)
# --8<-- [end:swapped]

# --8<-- [start:claims]
claim("same-table", ours=agree, holds=agree == 18, kind="exact")
claim("same-at-test", ours=gap.layer, holds=gap.layer == 0, kind="exact", format=".0f")
claim("fewer-steps", ours=reached / steps[-1], holds=reached < 0.8 * steps[-1], kind="reproduced", format=".0%")
lead = min(runs["none"].loss[-1], runs["batch"].loss[-1]) - runs["layer"].loss[-1]
claim("ahead-of-batch-norm", ours=lead, holds=lead > 0.02, kind="reproduced", format=".3f")
claim("small-batches", ours=behind[4], holds=behind[4] > 2 > behind[128], kind="reproduced", format=".1f")
# --8<-- [end:claims]
