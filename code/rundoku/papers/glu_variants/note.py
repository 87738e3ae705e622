# --8<-- [start:setup]
from statistics import mean, median, stdev

import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table
from rundoku.papers.glu_variants import experiments, glu, kernel, two_thirds
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:gates]
x = torch.linspace(-4, 4, 401, requires_grad=True)
with figure("gates", columns=2, size=(7, 3.2)) as (left, right):
    for name, activation in experiments.GATED_FFN.items():
        y = glu(x, torch.ones_like(x), activation)
        (slope,) = torch.autograd.grad(y.sum(), x)
        left.plot(x.detach(), y.detach(), label=name)
        right.plot(x.detach(), slope, label=name)
    left.set(xlabel="Gate before the activation", title="act(g)", ylim=(-2, 4))
    right.set(xlabel="Gate before the activation", title="act′(g)", ylim=(-0.5, 1.5))
    left.legend()
publish(silu_least=F.silu(x).min().item())
# --8<-- [end:gates]

# --8<-- [start:cost]
width = two_thirds(3072)  # the paper's base model: C = 768
cost = experiments.cost(d_model=768, d_ff=3072, gated_width=width)
forgotten = experiments.cost(d_model=768, d_ff=3072, gated_width=3072)
publish(narrow=width, plain_parameters=cost.plain.parameters)
publish(gated_parameters=cost.gated.parameters, flops=cost.gated.flops)
gate_flops = experiments.FLOPS["silu", "forward"] * width
publish(gate_share=gate_flops / cost.gated.flops)
# --8<-- [end:cost]

# --8<-- [start:traffic]
traffic = experiments.traffic(d_model=768, d_ff=3072)
table(
    "traffic",
    columns=("Feed-forward", "forward", "backward", "kept for backward"),
    rows=[(n, t.forward, t.backward, t.kept) for n, t in traffic.items()],
    formats=("", ",", ",", ","),
)
swiglu, fused, gelu = traffic["SwiGLU"], traffic["SwiGLU, fused"], traffic["GELU"]
publish(saved_forward=1 - fused.forward / swiglu.forward)
publish(saved_backward=1 - fused.backward / swiglu.backward)
publish(backward_more=fused.backward / gelu.backward - 1)
publish(kept_swiglu=swiglu.kept / gelu.kept, kept_relu=fused.kept / traffic["ReLU"].kept)
# --8<-- [end:traffic]

# --8<-- [start:kernel]
torch.manual_seed(0)
gate, up = torch.randn(64, 2 * 197).half().chunk(2, -1)  # strided, as from one projection
exact = kernel.reference(gate, up)  # float64
kernel_error = error(kernel.gated(gate, up), exact)
torch_error = error(F.silu(gate) * up, exact)
publish(kernel_error=kernel_error, torch_error=torch_error)
# --8<-- [end:kernel]

# --8<-- [start:compiled]
CASES = ("silu forward, bf16", "silu backward, bf16", "gelu backward, bf16")
reports = compile_table("compiled", "rundoku.papers.glu_variants.kernel", cases=CASES)
publish(spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

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
    left.set(yticks=rows, yticklabels=KINDS, title="This code", xlabel="nats a character")
    right.set(title="Paper", xlabel="nats a token")
    left.invert_yaxis()
# --8<-- [end:comparison-figure]

# --8<-- [start:comparison-numbers]
noise = mean(stdev(losses[kind]) for kind in KINDS)
gains = [a - b for a, b in zip(losses["ReLU"], losses["SwiGLU"])]  # the same seed, each
gain, doubt = mean(gains), stdev(gains) / len(gains) ** 0.5
best, second, *_ = sorted(KINDS, key=ours.get)
gap = min(ours[k] for k in experiments.PLAIN_FFN) - max(ours[k] for k in experiments.GATED_FFN)
ranks = [sorted(KINDS, key=one.get).index for one in (ours, {k: paper[k][0] for k in KINDS})]
pairs = [(a, b) for i, a in enumerate(KINDS) for b in KINDS[:i]]
agree = sum((ranks[0](a) < ranks[0](b)) == (ranks[1](a) < ranks[1](b)) for a, b in pairs)
publish(noise=noise, gain=gain, doubt=doubt, best=best, second=second, behind=-gap)
publish(agree=agree, pairs=len(pairs), relu_loss=ours["ReLU"], swiglu_loss=ours["SwiGLU"])
# --8<-- [end:comparison-numbers]

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
publish(shut_first=real.shut[0], shut_most=max(real.shut), carry_first=real.carry[0])
publish(shut_middle=median(real.shut), carry_middle=median(real.carry))
# --8<-- [end:real]

# --8<-- [start:mistakes]
table(
    "mistakes",
    columns=("Mistake", "first layer", "median of all layers"),
    rows=[(name, each[0], median(each)) for name, each in real.mistakes.items()],
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
    rows.append((d_model, two_thirds(plain), rounded, 3 * rounded / (2 * plain) - 1))
columns = ("Model width", "two thirds", "rounded up", "too many parameters")
table("rounding", columns=columns, rows=rows, formats=(",", ",", ",", ".1%"))
extra = forgotten.gated.parameters / forgotten.plain.parameters - 1
publish(multiple=multiple, forgotten=extra, narrow_excess=rows[0][-1], llama_excess=rows[2][-1])
# --8<-- [end:rounding]

# --8<-- [start:gelus]
gap_of_gelus = experiments.gelu_gap(tokens=512)
publish(gelu_most=gap_of_gelus.most, gelu_at=gap_of_gelus.at, gelu_share=gap_of_gelus.share)
# --8<-- [end:gelus]

# --8<-- [start:half]
gates = (-8.0, -10.0, -11.0, -12.0)
half = experiments.half_precision(gates=gates)
written = ["NaN" if each is None else f"{each:.1e}" for each in half["written out"]]
rows = list(zip(gates, written, [f"{each:.1e}" for each in half.torch]))
columns = ("Gate", "g / (1 + exp(−g))", "F.silu")
table("half", columns=columns, rows=rows, formats=(".0f", "", ""))
limit = torch.finfo(torch.float16).max
exponent = torch.tensor(limit).log()  # beyond it exp overflows
deep = sum(lowest < -exponent for lowest in real.lowest)
publish(exponent=exponent, lowest=min(real.lowest), deep=deep, n_layers=len(real.lowest))
peak = max(real.largest)
publish(peak=peak, peak_layer=real.largest.index(peak) + 1, room=limit / peak)
publish(usual=median(real.largest), half_limit=limit, side=limit**0.5)
# --8<-- [end:half]

# --8<-- [start:claims]
same = cost.plain.parameters == cost.gated.parameters and cost.plain.flops == cost.gated.flops
claim("same-cost", ours=width, holds=same, kind="exact", format=",")
lead = {best, second} == {"GEGLU", "SwiGLU"}
claim("geglu-and-swiglu", ours=f"{best}, {second}", holds=lead, kind="reproduced")
claim("swiglu-gain", ours=gain, holds=gain > 2 * doubt, kind="reproduced", format=".3f")
claim("gated-below-plain", ours=gap, holds=gap > 0, kind="reproduced", format=".4f")
kept = fused.kept / gelu.kept
free = same and kept <= 1 and fused.forward <= gelu.forward
claim("no-drawback", ours=kept, holds=free, kind="reproduced", format=".2f")
# --8<-- [end:claims]
