"""The code side of the note."""

# --8<-- [start:setup]
from dataclasses import replace
from statistics import mean

import torch
from torch import nn

from rundoku.papers.attention_is_all_you_need import BASE, MultiHeadAttention, Transformer
from rundoku.papers.attention_is_all_you_need import experiments
from rundoku.show import claim, figure, heatmap, publish, table

# --8<-- [end:setup]

# --8<-- [start:saturation]
widths = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
scores = experiments.saturation(widths=widths, keys=64, queries=512, seed=0)
publish(n_keys=64, variance_64=scores.variance[widths.index(64)], largest_raw=scores.largest_raw[-1])
publish(gradient_loss=scores.gradient_scaled[-1] / scores.gradient_raw[-1])
with figure("saturation") as axes:
    axes.loglog(widths, scores.gradient_scaled, marker="o", label="scores divided by √d_k")
    axes.loglog(widths, scores.gradient_raw, marker="s", label="scores as they are")
    axes.set(xlabel="Head width d_k", ylabel="Norm of the softmax Jacobian")
    axes.legend()
# --8<-- [end:saturation]

# --8<-- [start:positions]
positions = experiments.position_properties(length=64, d_model=64, offsets=(1, 2, 5, 17, 40))
publish(rotation_error=positions.worst)
with figure("positions", columns=2, size=(7.2, 3.0)) as (left, right):
    for column in (0, 8, 16, 24):
        left.plot([row[column] for row in positions.encodings], label=f"dimension {column}")
    left.set(xlabel="Position", ylabel="Encoding")
    left.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    right.plot(range(-32, 32), positions.products)
    right.set(xlabel="Distance", ylabel="Dot product of two encodings")
# --8<-- [end:positions]

# --8<-- [start:parity]
torch.manual_seed(0)
ours = MultiHeadAttention(64, 4)
theirs = nn.MultiheadAttention(64, 4, bias=False, batch_first=True)
stacked = torch.cat((ours.query.weight, ours.key.weight, ours.value.weight))
theirs.load_state_dict({"in_proj_weight": stacked, "out_proj.weight": ours.output.weight})

x, allowed = torch.randn(2, 10, 64), torch.ones(10, 10).tril().bool()
expected, _ = theirs(x, x, x, attn_mask=~allowed)  # torch's module wants True where it is forbidden
publish(parity=(ours(x, x, x, allowed) - expected).abs().max().item())

model = Transformer(replace(BASE, vocab_size=100, n_layers=1))
source, target = torch.randint(3, 100, (2, 7)), torch.randint(3, 100, (2, 5))
print(tuple(model(source, target).shape))  # [B, N, V]
# --8<-- [end:parity]

# --8<-- [start:table-1]
costs = experiments.table_1(size=128, lengths=(81, 243), kernel=3, window=9)
kinds = ("self-attention", "recurrent", "convolutional", "restricted self-attention")
whole = "multi-head attention, whole"
rows = []
for kind in (*kinds, whole):
    layer = costs.layers[kind]
    rows.append((kind, layer.powers.n, layer.powers.d, *layer.chains, *costs.paths[kind]))
columns = ("Layer", "Power of n", "Power of d", "Chain, n = 81", "Chain, n = 243", "Path, n = 81", "Path, n = 243")
table("table-1", columns=columns, rows=rows, formats=("", ".2f", ".2f", "", "", "", ""))
publish(kernel=3, window=9)
# --8<-- [end:table-1]

# --8<-- [start:cost]
lengths, width = (64, 128, 256, 512, 1024), 512
cost = experiments.cost_by_length(width=width, lengths=lengths, kinds=(*kinds[:3], whole, "LSTM"))
with figure("cost") as axes:
    for kind, flops in cost.items():
        each = [total / length / 1e6 for total, length in zip(flops, lengths)]
        axes.loglog(lengths, each, marker="o", label=kind)
    axes.set(xlabel="Sequence length", ylabel="MFLOPs per token", xticks=lengths, yticks=(0.25, 0.5, 1, 2, 4))
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
pairs = zip(lengths, cost["self-attention"], cost["recurrent"])
cheaper = [length for length, attention, recurrence in pairs if attention < recurrence]
publish(cost_width=width, cheaper_up_to=max(cheaper))
# --8<-- [end:cost]

# --8<-- [start:table-3]
sizes = experiments.table_3()
rows = []
for name, size in sizes.items():
    rows.append((name, size.counted / 1e6, size.paper, round(size.fits[0]), round(size.fits[1])))
headings = ("Model", "Counted (M)", "Paper (M)", "Vocabulary from", "Vocabulary to")
table("table-3", columns=headings, rows=rows, formats=("", ".1f", "", ",", ","))

like_base = [size.fits for name, size in sizes.items() if name != "big"]
publish(rows_of_base=len(like_base), vocabulary_low=max(low for low, _ in like_base))
publish(vocabulary_high=min(high for _, high in like_base))
publish(base=sizes.base.counted / 1e6, big=sizes.big.counted / 1e6)
publish(big_low=sizes.big.fits[0], big_high=sizes.big.fits[1])
# --8<-- [end:table-3]

# --8<-- [start:training-cost]
counted = experiments.training_cost(tokens=25_000, length=25)
speed = 8 * 9.5e12  # GPUs × operations a second (§5.2, §6.1)
capacity = {"base": speed * 12 * 3600, "big": speed * 3.5 * 24 * 3600}
publish(base_share=counted.base / capacity["base"], big_share=counted.big / capacity["big"])
# --8<-- [end:training-cost]

# --8<-- [start:translation]
size = {"steps": 640, "digits": 12, "longest": 12}
run = experiments.translation(warmup=500, smoothing=0.1, example=45_678_002, seed=0, **size)
found, words = run.accuracy, range(1, 17)
with figure("accuracy-by-length") as axes:
    axes.axvspan(12.5, 16.5, alpha=0.12, label="longer than any in training")
    axes.plot(words, found.mean_by_length, marker="o", label="mean of the last 5 checkpoints")
    axes.plot(words, found.last_by_length, marker="s", label="last checkpoint")
    axes.set(xlabel="Words in the source", ylabel="Exact match", ylim=(0, 1.04))
    axes.legend(loc="lower left")
publish(mean=found.mean, last=found.last, beam=found.beam, parameters=run.parameters, steps=len(run.losses))
publish(just_beyond=found.mean_by_length[12], beyond=sum(found.mean_by_length[13:]) / 3)
# --8<-- [end:translation]

# --8<-- [start:beams]
rows = []
for name in ("<ja>", "<zh>"):
    example = run.examples[name]
    rows += [(name, beam, score) for beam, score in zip(example.beams, example.scores)]
table("beams", columns=("Language", "Translation", "Score"), rows=rows, formats=("", "", ".2f"))
publish(example=45_678_002)
# --8<-- [end:beams]

# --8<-- [start:alignment]
aligned = torch.tensor(run.alignment)  # [L, H]
head = int(aligned[-1].argmax())
with figure("alignment", columns=2, size=(7.2, 3.6)) as panels:
    for axes, name in zip(panels, ("<ja>", "<zh>")):
        example = run.examples[name]
        weights = example.maps[-1][head]  # [N, M]
        heatmap(axes, weights, xlabels=example.source, ylabels=example.target, high=1)
        axes.tick_params(axis="x", labelrotation=90)
publish(aligned=aligned[-1].max().item(), first_layer=aligned[0].max().item())
# --8<-- [end:alignment]

# --8<-- [start:smoothing]
SEEDS = range(4)
recipe = {"fault": "none", "layers": 1, "steps": 400}
both = [{**recipe, "smoothing": smoothing, "seed": seed} for smoothing in (0.0, 0.1) for seed in SEEDS]
runs = experiments.small_run.each(both)
sharp, smooth = runs[: len(SEEDS)], runs[len(SEEDS) :]
nll = [a.nll - b.nll for a, b in zip(smooth, sharp)]  # what smoothing changes, by seed
better = [a.accuracy - b.accuracy for a, b in zip(smooth, sharp)]
publish(sharp_nll=mean(run.nll for run in sharp), smooth_nll=mean(run.nll for run in smooth))
publish(sharp_accuracy=mean(run.accuracy for run in sharp), smooth_accuracy=mean(run.accuracy for run in smooth))
publish(seeds=len(SEEDS), worse=sum(change > 0 for change in nll), improved=sum(change > 0 for change in better))
# --8<-- [end:smoothing]

# --8<-- [start:faults]
recipe = {"smoothing": 0.1, "layers": 2, "steps": 300, "seed": 0}
spoiled = experiments.small_run.each([{"fault": fault, **recipe} for fault in experiments.FAULTS])
losses = dict(zip(experiments.FAULTS, (run.loss for run in spoiled)))
rows = [(fault, run.loss, run.accuracy) for fault, run in zip(experiments.FAULTS, spoiled)]
table("faults", columns=("Mistake", "Training loss", "Exact match"), rows=rows, formats=("", ".2f", ".0%"))
publish(sound=losses["none"], unshifted=losses["targets not shifted"], floor=experiments.loss_floor(0.1))
# --8<-- [end:faults]

# --8<-- [start:claims]
claim("variance-of-scores", ours=scores.variance[-1], holds=abs(scores.variance[-1] / widths[-1] - 1) < 0.05, kind="exact", format=".0f")
claim("shift-is-linear", ours=positions.worst, holds=positions.worst < 1e-6, kind="exact", format=".1e")

signs = {0.0: "{:.0}", 1.0: "{}", 2.0: "{}²"}  # how a factor with this power is written
powers = [{name: round(costs.layers[kind].powers[name], 6) for name in "krnd"} for kind in kinds]
orders = ", ".join("".join(signs.get(power, "{}^?").format(name) for name, power in layer.items()) for layer in powers)
claim("complexity", ours=orders, holds=orders == "n²d, nd², knd², rnd", kind="exact")
chains = [costs.layers[kind].chains for kind in kinds]
claim("sequential", ours=", ".join(str(long) for _, long in chains), holds=chains == [[2, 2], [81, 243], [1, 1], [2, 2]], kind="exact")
paths = [costs.paths[kind][1] for kind in kinds]  # at n = 243: 1, n - 1, log₃ n, and (n - 1)/(r - 1) rounded up
claim("path", ours=", ".join(map(str, paths)), holds=paths == [1, 242, 5, 31], kind="exact")
claim("cheaper-than-recurrent", ours=max(cheaper), holds=cheaper == [n for n in lengths if n < 512], kind="exact")
by_heads = experiments.cost_by_heads(width=512, length=64, heads=(1, 2, 4, 8, 16)).flops
claim("heads-cost-nothing", ours=max(by_heads) / min(by_heads), holds=max(by_heads) == min(by_heads), kind="exact", format=".2f")

claim("base-size", ours=sizes.base.counted / 1e6, holds=round(sizes.base.counted / 1e6) == 65, kind="exact", format=".1f")
claim("big-size", ours=sizes.big.counted / 1e6, holds=round(sizes.big.counted / 1e6) == 213, kind="exact", format=".1f")
pair = (sizes["(C) N = 8"].counted - sizes.base.counted) / 1e6
claim("two-layers", ours=pair, holds=abs(pair - 15) < 1, kind="exact", format=".1f")  # both ends are rounded to a million
claim("base-training", ours=capacity["base"], holds=f"{capacity['base']:.1e}" == "3.3e+18", kind="exact", format=".2e")
claim("big-training", ours=capacity["big"], holds=f"{capacity['big']:.1e}" == "2.3e+19", kind="exact", format=".2e")

claim("label-smoothing", ours=mean(better), holds=min(nll) > 0 and min(better) > 0, kind="reproduced", format="+.1%")
longer = found.mean_by_length[12:]
claim("longer-sequences", ours=mean(longer), holds=min(longer) > 0.5, kind="reproduced", format=".1%")
# --8<-- [end:claims]
