# --8<-- [start:setup]
from statistics import mean

import numpy
import torch

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table
from rundoku.gpu.trace import accesses, steps, traffic
from rundoku.papers.lora import LoRAConfig, apply_lora, experiments, kernel
from rundoku.papers.lora import lora_state_dict, merge_adapters
from rundoku.papers.lora.experiments import ATTENTION, EVERY_LINEAR
from rundoku.papers.lora.kernel_products import linear_kernel, narrow_kernel
from rundoku.show import claim, figure, heatmap, publish, table, tiles
# --8<-- [end:setup]

# --8<-- [start:parameter-count]
QV, ALL_FOUR = ("query", "value"), ("query", "key", "value", "output")
settings = ((("value",), 2), (QV, 1), (QV, 4), (ALL_FOUR, 2), (QV, 8), (ALL_FOUR, 4))
gpt3 = experiments.gpt3_counts(settings=settings)
trained = dict(zip(settings, gpt3.trained, strict=True))
table(
    "gpt3",
    columns=("Adapted", "Rank", "Trainable parameters", "Times fewer", "Checkpoint, MB"),
    rows=[(", ".join(names), rank, count, gpt3.full / count, 2 * count / 1e6) for (names, rank), count in trained.items()],
    formats=("", "", ",", ",.0f", ",.1f"),
)
publish(full_billions=gpt3.full / 1e9, full_gb=2 * gpt3.full / 1e9)
publish(rank_4=trained[QV, 4], rank_4_times=gpt3.full / trained[QV, 4])
publish(rank_4_mb=2 * trained[QV, 4] / 1e6)
# --8<-- [end:parameter-count]

# --8<-- [start:training-memory]
memory = experiments.gpt3_training_memory(targets=QV, rank=4)
parts = ("weights", "gradients", "moments")
table(
    "memory",
    columns=("In memory, GB", "full fine-tuning", "LoRA"),
    rows=[(part, memory.full[part] / 1e9, memory.lora[part] / 1e9) for part in parts],
    formats=("", ",.1f", ",.2f"),
)
held = {method: memory[method].weights + memory[method].moments for method in ("full", "lora")}
saved = 1 - held["lora"] / held["full"]
publish(memory_rank=4, saved=saved, saved_with_gradients=1 - sum(memory.lora[p] for p in parts) / sum(memory.full[p] for p in parts))
# --8<-- [end:training-memory]

# --8<-- [start:apply]
model = experiments.base_model()
apply_lora(model, ["query", "value"], LoRAConfig(rank=8, alpha=8))
for name, tensor in lora_state_dict(model).items():
    print(f"{name:<55} {tuple(tensor.shape)}")
# --8<-- [end:apply]

# --8<-- [start:switching]
base = experiments.pretrain(steps=1000, seed=0)
losses = experiments.switching(domains=("poems", "code"), targets=EVERY_LINEAR, rank=8)
names = {"none": "base model", "poems": "poems", "code": "code", "blend": "half of each"}
table(
    "switching",
    columns=("Adapter in use", "Loss on poems", "Loss on code"),
    rows=[(names[name], loss.poems, loss.code) for name, loss in losses.items()],
    formats=("", ".3f", ".3f"),
)
publish(parameters=base.parameters)
# --8<-- [end:switching]

# --8<-- [start:fused]
size = {"rows": 4096, "inputs": 4096, "outputs": 4096, "rank": 16}
moved = kernel.moved(**size, itemsize=2)  # bytes, by formula
times = {way: count / moved["merged"] for way, count in moved.items()}
table(
    "fused",
    columns=("Layer", "Bytes moved, MB", "Ratio"),
    rows=[(way, moved[way] / 1e6, times[way]) for way in moved],
    formats=("", ",.0f", ".2f"),
)
publish(fused_rows=size["rows"], fused_rank=size["rank"])
publish(plain_times=times["plain torch"], fused_more=times["fused kernel"] - 1)

torch.manual_seed(0)
shapes = (64, 197), (100, 197), (8, 197), (100, 8)  # of x, W, A and B
given = [(torch.randn(shape) / shape[1] ** 0.5).half() for shape in shapes]
exact = kernel.reference(*given, scale=0.5)  # float64
by_torch = kernel.reference(*given, scale=0.5, upcast=False)
fused = kernel.lora_linear(*given, scale=0.5)
publish(kernel_error=error(fused, exact), torch_error=error(by_torch, exact))
# --8<-- [end:fused]

# --8<-- [start:compiled]
reports = compile_table(
    "compiled",
    "rundoku.papers.lora.kernel",
    cases=("forward, bf16, r ≤ 16", "backward, bf16, r ≤ 16"),
)
publish(spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

# --8<-- [start:watch]
x = [[1.0, 0, 2, 1], [0, 1, 1, 0], [2, 1, 0, 0], [0, 0, 1, 3]]
x = torch.tensor([*x, [1, 2, 0, 1], [3, 0, 1, 0], [1, 1, 1, 1]])
W = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 2], [0, 0, 1, 1]])
A, B = torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[2.0], [0], [4], [2]])
(R, I), O, r = x.shape, len(W), 1
u, y = torch.full((R, 2), torch.nan), torch.full((R, O), torch.nan)  # r rounded up to 2, by a call to 16


def thin():
    narrow_kernel[(4,)](x, A, u, R, I, r, 2, I, 2, 2, 2, "ieee")


def whole():
    sizes, strides = (R, I, O, r), (I, I, 1)
    linear_kernel[(8,)](x, W, u, B, None, y, *sizes, 2, 0.5, *strides, 2, 2, 2, 2, 2, "ieee")


thin()
touched, one = accesses(whole), 6  # of the eight programs
ratios = {"width_ratios": (2, I, O), "height_ratios": (r, I, R)}
with figure("watched", rows=3, columns=3, size=(3.6, 5), **ratios) as grid:
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, title, matrix in (
        (grid[0, 2], "Bᵀ", B.T),
        (grid[1, 2], "Wᵀ", W.T),
        (grid[2, 0], "u", u),
        (grid[2, 1], "x", x),
    ):
        tiles(axes, numpy.where(touched.loads(matrix, program=one), one, -1))
        axes.set_title(title)
    tiles(grid[2, 2], touched.writer(y))
    grid[2, 2].set_title("y")
(y_stored,) = {*touched.stores(y).flat}  # the same for all its elements
publish(y_stored=int(y_stored))
# --8<-- [end:watch]

# --8<-- [start:turns]
for step in steps(linear_kernel, whole, program=one):
    if step.name in ("u", "b", "acc"):
        print(step)
# --8<-- [end:turns]

# --8<-- [start:counted]
x, W, A, B = given  # in float16, as above
y, u = kernel._outputs(x, W, A, B, None, 0.5)
(R, I), O, r = x.shape, len(W), len(A)
first = traffic(lambda: kernel._launch_narrow(x, A, u))
second = traffic(lambda: kernel._launch_linear(x, W, u, B.T.contiguous(), None, y, r, 0.5))
counted_bytes = sum(one.loaded_once + one.stored for one in (first, second))
formula = kernel.moved(R, I, O, r, itemsize=2)["fused kernel"]
publish(counted_bytes=counted_bytes, formula=formula, u_columns=u.shape[1], rank_here=r)
publish(loaded=second.loaded, loaded_once=second.loaded_once, stored=second.stored, y_bytes=y.nbytes)
# --8<-- [end:counted]

# --8<-- [start:rank-sweep]
RANKS = {"poems": (1, 4, 8, 64), "code": (1, 8, 64)}
PLACES = {"query and value": ATTENTION, "every linear layer": EVERY_LINEAR}
plain = [(domain, method) for domain in RANKS for method in ("full", "head")]
swept = [(domain, place, rank) for domain, ranks in RANKS.items() for place in PLACES for rank in ranks]
found = experiments.adapt.each(  # side by side
    [{"domain": domain, "method": method} for domain, method in plain]
    + [{"domain": domain, "method": "lora", "targets": PLACES[place], "rank": rank} for domain, place, rank in swept]
)
whole, head = dict(zip(RANKS, found[0:4:2])), dict(zip(RANKS, found[1:4:2]))
sweep = dict(zip(swept, found[4:], strict=True))
with figure("rank-sweep", columns=2, size=(7.2, 3.2)) as both:
    for axes, (domain, ranks) in zip(both, RANKS.items(), strict=True):
        for place in PLACES:
            axes.plot(ranks, [sweep[domain, place, rank].loss for rank in ranks], marker="o", label=place)
        axes.axhline(head[domain].loss, color="C2", linestyle=":", label="output layer only")
        axes.axhline(whole[domain].loss, color="C3", linestyle="--", label="full fine-tuning")
        axes.set(xscale="log", xlabel="Rank", title=domain)
        axes.set_xticks(ranks, map(str, ranks))
        axes.minorticks_off()
    both[0].set_ylabel("Test loss")
    both[1].set_ylim(top=3.0)  # room for the legend
    both[1].legend(loc="upper right")
# --8<-- [end:rank-sweep]


# --8<-- [start:gains]
def gain(domain, run):
    """Return the part of full fine-tuning's gain over the base model that a run reaches."""
    return (base.loss[domain] - run.loss) / (base.loss[domain] - whole[domain].loss)


runs = {"full fine-tuning": whole, "output layer only": head}
runs |= {f"{place}, rank {rank}": {d: sweep[d, place, rank] for d in RANKS} for place in PLACES for rank in RANKS["code"]}
table(
    "adaptation",
    columns=("Trained", "Trainable parameters", "Poems: loss", "Poems: part of the gain", "Code: loss", "Code: part of the gain"),
    rows=[
        (name, run["poems"].trained, run["poems"].loss, gain("poems", run["poems"]), run["code"].loss, gain("code", run["code"]))
        for name, run in runs.items()
    ],
    formats=("", ",", ".3f", ".0%", ".3f", ".0%"),
)
SEEDS = (1, 2, 3)  # one run is too few for the small differences between ranks
by_seed = {
    rank: [gain("poems", run) for run in experiments.adapt.each(
        {"domain": "poems", "method": "lora", "targets": QV, "rank": rank, "seed": seed} for seed in SEEDS
    )]
    for rank in (1, 8, 64)
}  # fmt: skip
near = {rank: mean(gains) for rank, gains in by_seed.items()}
linear = sweep["poems", "every linear layer", 8]
behind = {domain: sweep[domain, "query and value", 8].loss - whole[domain].loss for domain in RANKS}
publish(seeds=len(SEEDS), near_1=near[1], near_8=near[8], near_64=near[64], behind_poems=behind["poems"], behind_code=behind["code"])
publish(head_gain=gain("poems", head["poems"]), linear_gain=gain("poems", linear), linear_share=linear.trained / base.parameters)
# --8<-- [end:gains]

# --8<-- [start:placement]
choices = [(("query",), 8), (("key",), 8), (("value",), 8), (("output",), 8), (("query", "key"), 4), (QV, 4), (ALL_FOUR, 2)]
adapted = experiments.adapt.each({"domain": "poems", "method": "lora", "targets": names, "rank": r} for names, r in choices)
placed = {names: run for (names, _), run in zip(choices, adapted, strict=True)}
table(
    "placement",
    columns=("Adapted", "Rank", "Trainable parameters", "Loss on poems"),
    rows=[(", ".join(names), r, placed[names].trained, placed[names].loss) for names, r in choices],
    formats=("", "", ",", ".3f"),
)
publish(budget=placed[QV].trained, single_ahead=placed[QV].loss - min(placed[name,].loss for name in ALL_FOUR))
# --8<-- [end:placement]

# --8<-- [start:subspaces]
pairs = [experiments.subspaces(domain="poems", ranks=(8, 64), seeds=(seed, seed), controls=20) for seed in SEEDS]
found = pairs[0]
layer = "encoder.layers.1.self_attention"
maps = {"query": found.trained[f"{layer}.query"], "value": found.trained[f"{layer}.value"], "random": found.random}
with figure("subspaces", rows=3, size=(7.0, 4.4), sharex=True) as panels:
    for axes, (name, similarity) in zip(panels, maps.items(), strict=True):
        heatmap(axes, similarity, high=1.0)
        axes.set(title=name, ylabel="i of 8")
    panels[-1].set_xlabel("j of 64")
first = [phi for pair in pairs for phi in pair.trained.as_dict().values()]  # four matrices a seed
shared = mean(phi[0][0] for phi in first)
publish(shared_lowest=min(phi[0][0] for phi in first), among_four=min(phi[0][3] for phi in first))
publish(low_rank=8, high_rank=64, shared=shared, shared_random=found.random[0][0])
# --8<-- [end:subspaces]

# --8<-- [start:amplification]
updates = experiments.amplified(domain="poems", ranks=(4, 64), controls=50)
amplified = updates[f"{layer}.query"]
directions = {"of the update": "delta", "of the weight itself": "weight", "of a random matrix": "random"}
table(
    "amplification",
    columns=("Directions", "Norm at rank 4", "Norm at rank 64"),
    rows=[(name, amplified["4"].through[key], amplified["64"].through[key]) for name, key in directions.items()],
    formats=("", ".2f", ".2f"),
)
publish(weight_norm=amplified["4"].weight, delta_4=amplified["4"].delta, delta_64=amplified["64"].delta)
publish(
    draws=50,
    factor_4=amplified["4"].factor,
    factor_64=amplified["64"].factor,
    known=amplified["4"].through.delta / amplified["4"].highest_random,
)
publish(matrices=len(updates), known_lowest=min(one["4"].through.delta / one["4"].highest_random for _, one in updates.items()))
# --8<-- [end:amplification]

# --8<-- [start:merging]
merging = experiments.merging(domain="poems", targets=EVERY_LINEAR, rank=8)
work = merging.work
table(
    "merging",
    columns=("Model", "Floating-point operations", "Ratio"),
    rows=[
        ("base model", work.base, 1.0),
        ("adapter beside the weight", work.adapted, work.adapted / work.base),
        ("merged", work.merged, work.merged / work.base),
    ],
    formats=("", ",", ".3f"),
)
publish(merge_difference=merging.difference, merge_effect=merging.effect, residue=merging.residue)
# --8<-- [end:merging]

# --8<-- [start:starts]
starts = experiments.starts(domain="poems", rank=8)
kinds = ("A random, B zero", "both zero", "both random")
table(
    "starts",
    columns=("Start", "Loss before training", "Gradient norm of A", "Gradient norm of B"),
    rows=[(kind, starts[kind].loss, starts[kind].A, starts[kind].B) for kind in kinds],
    formats=("", ".6f", ".4f", ".4f"),
)
# --8<-- [end:starts]

# --8<-- [start:scaling]
SCALED = (1, 4, 16, 64)
moved = experiments.scaling(domain="poems", ranks=SCALED, steps=20)
with figure("scaling") as axes:
    for factor in moved:
        axes.plot(SCALED, moved[factor], marker="o", label=factor)
    axes.set(xscale="log", yscale="log", xlabel="Rank", ylabel="Change of the logits")
    axes.set_xticks(SCALED, map(str, SCALED))
    axes.minorticks_off()
    axes.legend()
spread = {factor: max(sizes) / min(sizes) for factor, sizes in moved.items()}
publish(spread_over_r=spread["α/r"], spread_root=spread["α/√r"], spread_alpha=spread["α"])
# --8<-- [end:scaling]

# --8<-- [start:half-precision]
shares = (1.0, 0.1, 0.01, 0.001)
rounded = experiments.merging_in_half_precision(domain="poems", targets=EVERY_LINEAR, rank=8, shares=shares)
with figure("half-precision") as axes:
    for dtype in ("bfloat16", "float16", "float32"):
        axes.plot(shares, rounded[dtype].lost, marker="o", label=dtype)
    axes.set(xscale="log", yscale="log", xlabel="Size of the update, against the trained one", ylabel="Part of the update lost")
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.minorticks_off()
    axes.legend()
publish(small=shares[2], bf16_lost=rounded.bfloat16.lost[2], bf16_still=rounded.bfloat16.still[2], fp16_lost=rounded.float16.lost[2])
# --8<-- [end:half-precision]

# --8<-- [start:frozen-too-late]
late = experiments.frozen_too_late(domain="poems", steps=20, weight_decay=0.1)
table(
    "frozen-too-late",
    columns=("Base frozen", "Frozen weight's norm after 20 steps", "Numbers that Adam keeps"),
    rows=[(when, late[when].kept, late[when].moments) for when in ("before the optimizer", "after a first step")],
    formats=("", ".4%", ","),
)
# --8<-- [end:frozen-too-late]

# --8<-- [start:twice]
merge_adapters(model)
try:
    merge_adapters(model)
except ValueError as error:
    print(error)
# --8<-- [end:twice]

# --8<-- [start:claims]
counted = {setting: round(count / 1e6, 1) for setting, count in trained.items()}
claim("small-budget", ours=counted[QV, 1], holds=counted[QV, 1] == counted[("value",), 2] == 4.7, kind="exact", format=".1f")
claim("large-budget", ours=counted[ALL_FOUR, 2], holds=counted[ALL_FOUR, 2] == 37.7, kind="exact", format=".1f")
times = gpt3.full / trained[QV, 4]
claim("ten-thousand-times", ours=times, holds=abs(times / 10_000 - 1) < 0.1, kind="exact", format=",.0f")
claim("two-thirds", ours=saved, holds=abs(saved - 2 / 3) < 0.001, kind="exact", format=".4f")
claim("no-latency", ours=work.merged / work.base, holds=work.merged == work.base < work.adapted, kind="reproduced", format=".3f")
claim("rank-one", ours=near[1] / near[64], holds=near[1] / near[64] > 0.9, kind="reproduced", format=".2f")
more = [wide - narrow for narrow, wide in zip(by_seed[8], by_seed[64], strict=True)]
claim("more-rank", ours=mean(more), holds=min(more) <= 0, kind="reproduced", format="+.1%")
margin = min(placed[other].loss for other in (("query",), ("key",), ("query", "key"))) - placed[QV].loss
claim("query-and-value", ours=margin, holds=margin > 0.02, kind="reproduced", format=".3f")
single = min(placed[name,].loss for name in ALL_FOUR) - placed[QV].loss
claim("better-than-one", ours=single, holds=single > 0, kind="reproduced", format=".3f")
claim("shared-direction", ours=shared, holds=shared > 0.5, kind="reproduced", format=".2f")
everywhere = [one for _, one in updates.items()]  # the paper looks at one matrix of one layer
claim(
    "amplifies",
    ours=amplified["4"].factor,
    holds=all(one["4"].factor > 2 > one["64"].factor for one in everywhere),
    kind="reproduced",
    format=".1f",
)
known = min(one["4"].through.delta / one["4"].through.random for one in everywhere)
claim("known-features", ours=known, holds=known > 1, kind="reproduced", format=".2f")
claim("scale", ours=spread["α/r"], holds=spread["α/r"] < 3 and spread["α"] > 10, kind="reproduced", format=".1f")
claim("far-domain", ours=behind["code"] / behind["poems"], holds=behind["code"] > 3 * behind["poems"], kind="reproduced", format=".1f")
# --8<-- [end:claims]
