# --8<-- [start:setup]
from statistics import mean, median, stdev

import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table, cost_table
from rundoku.gpu.trace import accesses, steps
from rundoku.papers.glu_variants import benchmarks, experiments, glu, kernel, two_thirds
from rundoku.show import claim, figure, publish, table, tiles
# --8<-- [end:setup]

# --8<-- [start:gates]
x = torch.linspace(-4, 4, 401, requires_grad=True)
with figure("gates", columns=2, size=(7, 3.2)) as (left, right):
    for name, activation in experiments.GATED_FFN.items():
        y = glu(x, torch.ones_like(x), activation)
        (slope,) = torch.autograd.grad(y.sum(), x)
        left.plot(x.detach(), y.detach(), label=name)
        right.plot(x.detach(), slope, label=name)
    left.set(title="act(g)", xlabel="Gate before the activation", ylim=(-2, 4))
    right.set(title="act′(g)", xlabel="Gate before the activation")
    left.legend()
publish(silu_least=F.silu(x).min().item())
# --8<-- [end:gates]

# --8<-- [start:cost]
width = two_thirds(3072)  # the paper's base model: C = 768
cost = experiments.cost(d_model=768, d_ff=3072, gated_width=width)
forgotten = experiments.cost(d_model=768, d_ff=3072, gated_width=3072)
publish(narrow=width, parameters=cost.gated.parameters, flops=cost.gated.flops)
gate_flops = kernel.FLOPS["silu"][0] * width
publish(gate_share=gate_flops / cost.gated.flops)
# --8<-- [end:cost]

# --8<-- [start:traffic]
traffic = benchmarks.traffic(d_model=768, d_ff=3072)
table(
    "traffic",
    columns=("Feed-forward", "forward", "backward", "kept for backward"),
    rows=[(n, t.forward, t.backward, t.kept) for n, t in traffic.items()],
    formats=("", ",", ",", ","),
)
relu, gelu, swiglu, fused = (each for _, each in traffic.items())
publish(saved_forward=1 - fused.forward / swiglu.forward)
publish(saved_backward=1 - fused.backward / swiglu.backward)
publish(backward_more=fused.backward / gelu.backward - 1)
publish(kept_swiglu=swiglu.kept / gelu.kept, kept_relu=fused.kept / relu.kept)
# --8<-- [end:traffic]

# --8<-- [start:kernel]
torch.manual_seed(0)
gate, up = torch.randn(64, 2 * 197).half().chunk(2, -1)
exact = kernel.reference(gate, up)  # float64
kernel_error = error(kernel.gated(gate, up), exact)
torch_error = error(F.silu(gate) * up, exact)
publish(kernel_error=kernel_error, torch_error=torch_error)
# --8<-- [end:kernel]

# --8<-- [start:compiled]
reports = compile_table(
    "compiled",
    "rundoku.papers.glu_variants.kernel",
    cases=("silu forward, bf16", "silu backward, bf16"),
)
cost_table(
    "roofline",
    "rundoku.papers.glu_variants.kernel",
    cases=("silu forward, bf16", "silu backward, bf16"),
)
publish(spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

# --8<-- [start:watch]
log3 = torch.tensor(3.0).log()  # sigmoid(log3) is 0.75
projected = torch.ones(3, 12)  # [R, 2·F]: a row is six gates and six ups
projected[2, [4, 5, 10, 11]] = torch.stack((log3, -log3, torch.tensor(4), torch.tensor(8)))
dh = torch.ones(3, 6)
h, dgate, dup = torch.empty(3, 3, 6)


def launch(gate, up):
    g, u = kernel._rows(gate, up)  # as the operator does
    grid = (len(g) * -(-g.shape[1] // 4),)  # tiles of four elements
    kernel._forward[grid](g, u, h, g.shape[1], g.stride(0), u.stride(0), "silu", 4)


def forward():
    launch(*projected.chunk(2, -1))


by_halves = accesses(forward)
by_rows = accesses(lambda: launch(dh, dh))  # any two contiguous tensors
readers = torch.full((3, 12), -1)
for program in range(6):
    readers[torch.from_numpy(by_halves.loads(projected, program)) > 0] = program
with figure("programs", columns=3, size=(7, 1.7), width_ratios=(12, 6, 6)) as three:
    for axes, title, owners in zip(
        three,
        ("halves of one projection: g, u", "h", "h, all contiguous"),
        (readers, by_halves.writer(h), by_rows.writer(h)),
        strict=True,
    ):
        tiles(axes, owners)
        axes.set(title=title)
# --8<-- [end:watch]

# --8<-- [start:forward-steps]
for step in steps(kernel._forward, forward, program=5):
    if step.name in ("column", "inside", "g", "u", "value"):
        print(step)
print("stored:", h[2, 4:])
# --8<-- [end:forward-steps]


# --8<-- [start:backward-steps]
def backward():
    g, u = projected.chunk(2, -1)
    strides = dh.stride(0), g.stride(0), u.stride(0)
    kernel._backward[(6,)](dh, g, u, dgate, dup, 6, *strides, "silu", 4)


for step in steps(kernel._backward, backward, program=5):
    if step.name in ("value", "slope"):
        print(step)
print("stored:", dgate[2, 4:], dup[2, 4:])
# --8<-- [end:backward-steps]

# --8<-- [start:moved]
n_rows, n_columns, size = 64, 197, 2  # in float16
projected = torch.randn(n_rows, 2 * n_columns).half().requires_grad_()
gate, up = projected.chunk(2, -1)
h = kernel.gated(gate, up)
moved = accesses(lambda: kernel.gated(gate, up)).traffic
moved_back = accesses(lambda: h.backward(torch.ones_like(h))).traffic
tensor = n_rows * n_columns * size
publish(n_rows=n_rows, n_columns=n_columns)
publish(moved=moved.loaded + moved.stored, formula=3 * tensor, more=(5 - 3) * tensor)
publish(moved_back=moved_back.loaded + moved_back.stored)
publish(formula_back=5 * tensor, more_back=(9 - 5) * tensor)
once = moved.loaded_once + moved_back.loaded_once
publish(twice=moved.loaded + moved_back.loaded - once)
# --8<-- [end:moved]

# --8<-- [start:comparison]
SEEDS, KINDS = range(4), experiments.KINDS
runs = [{"kind": kind, "seed": seed} for kind in KINDS for seed in SEEDS]
found = iter(experiments.language_model.each(runs))
losses = {kind: [next(found).loss for _ in SEEDS] for kind in KINDS}
ours = {kind: mean(losses[kind]) for kind in KINDS}
paper = {  # Table 1, 65,536 steps: mean and deviation of four runs
    "ReLU": (1.997, 0.005), "GELU": (1.983, 0.005), "Swish": (1.994, 0.003),
    "GLU": (1.982, 0.006), "Bilinear": (1.960, 0.005), "GEGLU": (1.942, 0.004),
    "SwiGLU": (1.944, 0.010), "ReGLU": (1.953, 0.003),
}  # fmt: skip
# --8<-- [end:comparison]

# --8<-- [start:comparison-figure]
rows = range(len(KINDS))
with figure("comparison", columns=2, size=(7, 3.4), sharey=True) as (left, right):
    for row, kind in zip(rows, KINDS):
        color = f"C{int(kind in experiments.GATED_FFN)}"
        left.plot(losses[kind], [row] * len(SEEDS), "o", color=color, alpha=0.4)
        left.plot(ours[kind], row, "|", markersize=16, color=color)
        value, deviation = paper[kind]
        right.errorbar(value, row, xerr=deviation, fmt="o", color=color)
    left.set(title="This code", xlabel="nats a character")
    left.set(yticks=rows, yticklabels=KINDS)
    right.set(title="Paper", xlabel="nats a token")
    left.invert_yaxis()
# --8<-- [end:comparison-figure]


# --8<-- [start:comparison-lead]
def lead(of, over):
    """Return the mean lead of one kind and its standard error, seed by seed."""
    leads = [b - a for a, b in zip(losses[of], losses[over], strict=True)]
    return mean(leads), stdev(leads) / len(leads) ** 0.5


best, second, third, *_ = sorted(KINDS, key=ours.get)
gain, gain_error = lead("SwiGLU", "ReLU")
edge, edge_error = lead(second, third)
publish(best=best, second=second, third=third)
publish(gain=gain, gain_error=gain_error, edge=edge, edge_error=edge_error)
publish(noise=mean(stdev(losses[kind]) for kind in KINDS))
# --8<-- [end:comparison-lead]

# --8<-- [start:comparison-order]
theirs = {kind: value for kind, (value, _) in paper.items()}
pairs = [(a, b) for a in KINDS for b in KINDS if a < b]
agree = sum((ours[a] < ours[b]) == (theirs[a] < theirs[b]) for a, b in pairs)
best_plain = min(ours[kind] for kind in experiments.PLAIN_FFN)
worst_gated = max(ours[kind] for kind in experiments.GATED_FFN)
gap = best_plain - worst_gated
publish(pairs=len(pairs), agree=agree, behind=-gap)
# --8<-- [end:comparison-order]

# --8<-- [start:real]
real = experiments.real_gates(tokens=512)  # every layer of SmolLM2-135M
centres = [(a + b) / 2 for a, b in zip(real.edges, real.edges[1:])]
layers = range(1, len(real.shut) + 1)
with figure("real", columns=2, size=(7, 3.2)) as (left, right):
    left.bar(centres, real.histogram, width=0.02)
    left.set(xlabel="silu(gate), layer 1", ylabel="Share of gates")
    right.plot(layers, real.shut, label="gates below zero")
    right.plot(layers, real.carry, label="units for nine tenths")
    right.set(xlabel="Layer", ylabel="Share", ylim=(0, 1))
    right.legend()
publish(shut_first=real.shut[0], shut_middle=median(real.shut))
publish(shut_most=max(real.shut))
publish(carry_first=real.carry[0], carry_middle=median(real.carry), carry_last=real.carry[-1])
torch.manual_seed(0)
chance = glu(*torch.randn(2, 256, 1536)).square().sort(descending=True).values.cumsum(-1)
publish(carry_chance=(chance < 0.9 * chance[:, -1:]).double().mean())
# --8<-- [end:real]

# --8<-- [start:mistakes]
table(
    "mistakes",
    columns=("Mistake", "first layer", "median of all layers"),
    rows=[(name, off[0], median(off)) for name, off in real.mistakes.items()],
    formats=("", ".0%", ".0%"),
)
swapped = real.mistakes["gate and up swapped"]
gate, up = torch.randn(2, 5)
bilinear = (glu(gate, up, "identity") - glu(up, gate, "identity")).abs().max()
publish(swapped=median(swapped), bilinear=bilinear)
# --8<-- [end:mistakes]

# --8<-- [start:halves]
value, gate = torch.randn(2, 4)
both = F.glu(torch.cat([value, gate]))  # torch gates with the second half
by_second, by_first = glu(gate, value, "sigmoid"), glu(value, gate, "sigmoid")
publish(off_second=error(both, by_second), off_first=error(both, by_first))
# --8<-- [end:halves]

# --8<-- [start:rounding]
rows = []
for d_model in (64, 576, 4096, 8192):
    plain, multiple = 4 * d_model, 256  # what the LLaMA models round to
    rounded = two_thirds(plain, multiple)
    excess = 3 * rounded / (2 * plain) - 1
    rows.append((d_model, two_thirds(plain), rounded, excess))
columns = ("Model width", "two thirds", "rounded up", "too many parameters")
table("rounding", columns=columns, rows=rows, formats=(",", ",", ",", ".1%"))
extra = forgotten.gated.parameters / forgotten.plain.parameters - 1
publish(multiple=multiple, forgotten=extra, llama_excess=rows[2][-1])
# --8<-- [end:rounding]

# --8<-- [start:gelus]
gelus = experiments.gelu_gap(tokens=512)
publish(gelu_most=gelus.most, gelu_at=gelus.at, gelu_share=gelus.share)
# --8<-- [end:gelus]

# --8<-- [start:half]
gates = (-8.0, -10.0, -11.0, -12.0)
half = experiments.half_precision(gates=gates)
rows = [
    (gate, *("NaN" if one is None else f"{one:.1e}".replace("-", "−") for one in both))
    for gate, *both in zip(gates, half["written out"], half.torch)
]
columns = ("Gate", "g / (1 + exp(−g))", "F.silu")
table("half", columns=columns, rows=rows, formats=(".0f", "", ""))
# --8<-- [end:half]

# --8<-- [start:range]
limit = torch.finfo(torch.float16).max
exponent = torch.tensor(limit).log().item()  # beyond it exp overflows
deep = sum(lowest < -exponent for lowest in real.lowest)
publish(exponent=exponent, lowest=min(real.lowest))
publish(deep=deep, n_layers=len(real.lowest))
peak = max(real.largest)
publish(peak=peak, peak_layer=real.largest.index(peak) + 1, room=limit / peak)
publish(usual=median(real.largest), half_limit=limit, side=limit**0.5)
# --8<-- [end:range]

# --8<-- [start:claims]
same = cost.plain.as_dict() == cost.gated.as_dict()  # parameters and operations
claim("same-cost", ours=width, holds=same, kind="exact", format=",")
claim(
    "geglu-and-swiglu",
    ours=f"{best}, {second}",
    holds={best, second} == {"GEGLU", "SwiGLU"} and edge > edge_error,
    kind="reproduced",
)
claim("swiglu-gain", ours=gain, holds=gain > 2 * gain_error, kind="reproduced", format=".3f")
claim("gated-below-plain", ours=gap, holds=gap > 0, kind="reproduced", format=".3f")
kept, forward, backward = (fused[key] / gelu[key] for key in ("kept", "forward", "backward"))
equal = same and kept <= 1 and forward <= 1
claim("no-drawback", ours=backward, holds=equal and backward <= 1, kind="reproduced", format=".2f")
# --8<-- [end:claims]
