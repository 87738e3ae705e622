# --8<-- [start:setup]
import numpy
import torch
from functools import partial
from math import pi
from textwrap import shorten
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table, cost_table
from rundoku.gpu.trace import accesses, steps
from rundoku.papers.roformer import decay_bound, experiments, frequencies, kernel
from rundoku.papers.roformer import rotary_linear_attention, rotary_tables, rotate
from rundoku.show import claim, figure, publish, table, tiles
# --8<-- [end:setup]

# --8<-- [start:by-hand]
x = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).expand(3, 4)  # positions 0, 1, 2
cos, sin = rotary_tables(torch.arange(3), d_head=4)
print(rotate(x, cos, sin, "interleaved").numpy().round(3))
turns = torch.polar(torch.ones(3, 2), torch.arange(3)[:, None] * torch.tensor([1.0, 0.01]))
product = torch.view_as_complex(x.reshape(3, 2, 2)) * turns  # pairs as complex numbers
print(torch.view_as_real(product).flatten(1).numpy().round(3))
# --8<-- [end:by-hand]

# --8<-- [start:rotation]
theta = frequencies(64, base=1e5)
with figure("rotation", columns=3, size=(7.0, 2.6), subplot_kw={"aspect": "equal"}) as panels:
    for axes, pair in zip(panels, (0, 4, 8), strict=True):
        angles = torch.arange(8) * theta[pair]
        xs, ys = angles.cos().tolist(), angles.sin().tolist()
        for m in range(8):
            axes.plot([0, xs[m]], [0, ys[m]], color="C0", linewidth=1, alpha=0.3 + 0.1 * m)
        for m in range(8) if theta[pair] > 0.1 else (0, 7):
            axes.text(1.17 * xs[m], 1.17 * ys[m], str(m), ha="center", va="center", fontsize=8)
        axes.plot(xs, ys, "o", markersize=4, color="C1")
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[], title=f"pair {pair + 1}")
        axes.spines[:].set_visible(False)
# --8<-- [end:rotation]

# --8<-- [start:relative]
torch.manual_seed(0)
query, key = torch.randn(2, 1, 64)
for m, n in ((3, 7), (103, 107), (100_003, 100_007), (3, 8)):
    turned = [rotate(v, *rotary_tables(torch.tensor([at]), 64)) for v, at in ((query, m), (key, n))]
    print(f"query at {m:>6}, key at {n:>6}: {(turned[0] @ turned[1].T).item():.5f}")
# --8<-- [end:relative]

# --8<-- [start:kernel]
torch.manual_seed(0)
query, key = torch.randn(1, 9, 197, 64).half(), torch.randn(1, 3, 197, 64).half()
tables = rotary_tables(torch.arange(197), 64, base=1e5)
exact = kernel.reference(query, key, *tables)  # float64
ours = kernel.rotary(query, key, *tables)
plain = kernel.reference(query, key, *tables, upcast=False)  # tables in float16, too
kernel_error, torch_error = (max(map(error, found, exact)) for found in (ours, plain))
publish(kernel_error=kernel_error, torch_error=torch_error)
# --8<-- [end:kernel]

# --8<-- [start:compiled]
reports = compile_table(
    "compiled",
    "rundoku.papers.roformer.kernel",
    cases=("half, bf16", "interleaved, bf16"),
    tiles={"PAIRS": 32},
)
cost_table(
    "roofline",
    "rundoku.papers.roformer.kernel",
    cases=("half, bf16", "interleaved, bf16"),
    tiles={"PAIRS": 32},
)
publish(spilled=sum(report.spill for report in reports), shared=max(r.shared for r in reports))
# --8<-- [end:compiled]

# --8<-- [start:watch]
H, G, N, D = 3, 1, 3, 4  # query heads, key heads, positions, elements of a head
query = torch.arange(36.0).view(H, N, D)  # every element holds its own place
key = torch.arange(12.0).view(G, N, D)
# a position turns the first pair by a quarter of a circle, the second by a half
cos = torch.tensor([[1.0, 1], [0, -1], [-1, 1]])
sin = torch.tensor([[0.0, 0], [1, 0], [0, 0]])
query_out, key_out = torch.empty(H, N, D), torch.empty(G, N, D)


def turn(layout, heads=2):
    blocks = -(-H // heads) + -(-G // heads)
    kernel._rotary[(2, blocks)](  # two tiles of rows
        *(query, key, cos, sin, query_out, key_out),
        *(H, G, N, D // 2),  # sizes, then strides
        *(0, N * D, D, 0, N * D, D, 0),
        *(2, 2, heads, layout == "interleaved", False),  # a tile's rows and pairs
    )


half, interleaved = partial(turn, "half"), partial(turn, "interleaved")
touched = accesses(half)
with figure("programs", size=(6.4, 1.7)) as axes:
    numbers = []
    for out in (query_out, key_out):
        numbers += [*touched.writer(out) + 2 * touched.writer(out, axis=1)]
    tiles(axes, numpy.hstack(numbers))  # heads side by side
    axes.set_xticks((2, 6, 10, 14), ("query", "query", "query", "key"))
# --8<-- [end:watch]

# --8<-- [start:pairs]
with figure("pairs", columns=2, size=(7.0, 1.5)) as both:
    for axes, call in zip(both, (half, interleaved), strict=True):
        pair = numpy.full(query.numel(), -1)
        for step in steps(kernel._turn, call, program=(0, 0)):
            if step.name in ("a", "b"):  # the values are places
                pair[step.value.astype(int)] = (0, 1)
        tiles(axes, numpy.hstack(pair.reshape(H, N, D)))
        axes.set_xticks((2, 6, 10), ["query"] * 3)
        axes.set(title=call.args[0])
# --8<-- [end:pairs]


# --8<-- [start:quarter]
def show(kernel, call, *names):
    for step in steps(kernel, call, program=(0, 2)):  # has the keys' first rows
        if step.name in names:
            source = shorten(step.source, 68, placeholder=" …")
            row = str(step.value[1])  # of two the second
            print(f"{step.name:9}{row:20}{source}")


show(kernel._rotary, half, "c", "s")
print("\nhalf")
show(kernel._turn, half, "a", "b", "turned_a", "turned_b")
print("\ninterleaved")
show(kernel._turn, interleaved, "tile", "a", "b", "turned_a", "turned_b")
# --8<-- [end:quarter]

# --8<-- [start:loads]
for heads in (1, 2, 4):
    found = accesses(partial(half, heads))
    print(f"HEADS = {heads}   loads of each cosine:", found.loads(cos).tolist())
# --8<-- [end:loads]


# --8<-- [start:traffic]
class Moved(TorchDispatchMode):
    """Count the bytes that torch's operations read and write, each on its own."""

    bytes = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        if not operation.is_view:
            leaves = tree_leaves((arguments, result))
            self.bytes += sum(t.nbytes for t in leaves if isinstance(t, torch.Tensor))
        return result


H, G, N, D = 9, 3, 197, 64  # in float16
query, key = torch.randn(1, H, N, D).half(), torch.randn(1, G, N, D).half()
query.requires_grad_(), key.requires_grad_()
tables = rotary_tables(torch.arange(N), D, base=1e5)
there = accesses(lambda: kernel.rotary(query, key, *tables))
query_out, key_out = kernel.rotary(query, key, *tables)
back = accesses(lambda: torch.autograd.backward((query_out, key_out), (query, key)))
moved, moved_back = (w.traffic.loaded_once + w.traffic.stored for w in (there, back))
publish(kernel_moved=moved, kernel_moved_back=moved_back)
publish(formula=2 * 2 * (H + G) * N * D + 4 * N * D, reads=there.loads(tables[0]).max())
halves = [table.half() for table in tables]
with torch.no_grad(), Moved() as plain:
    rotate(query, *halves), rotate(key, *halves)
publish(plain_moved=plain.bytes, factor=plain.bytes / moved)
# --8<-- [end:traffic]

# --8<-- [start:shifted]
shifts = (0, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
found = experiments.shifted(shifts=shifts)
moved, stretched = max(found.moved), max(found.norm)
publish(moved=moved, stretched=stretched, furthest=shifts[-1])
# --8<-- [end:shifted]

# --8<-- [start:wavelengths]
CONTEXT, bases = 8192, {"10⁴": 1e4, "10⁵": 1e5, "5·10⁵": 5e5}  # SmolLM2's context length
waves = {name: 2 * pi / frequencies(64, base) for name, base in bases.items()}
with figure("wavelengths") as axes:
    for name, wave in waves.items():
        axes.plot(range(1, 33), wave.tolist(), label=f"base {name}")
    axes.axhline(CONTEXT, linestyle="--", linewidth=1, color="C3", label="SmolLM2's context")
    axes.set(xlabel="Pair", ylabel="Positions a turn", yscale="log")
    axes.legend()
slow = [sum(wave > CONTEXT).item() for wave in waves.values()]
publish(context=CONTEXT, slow_original=slow[0], slow_smollm=slow[1], slow_abf=slow[2], pairs=32)
# --8<-- [end:wavelengths]

# --8<-- [start:decay]
near, far, width = torch.arange(250), torch.logspace(0, 5, 600).round(), 128
with figure("decay", columns=2, size=(7.0, 3.0), sharey=True) as (left, right):
    left.plot(near, decay_bound(near, width))
    left.set(xlabel="Distance", ylabel="Bound on the score, relative")
    for name, base in bases.items():
        right.plot(far, decay_bound(far, width, base), label=f"base {name}", linewidth=1)
    right.set(xlabel="Distance", xscale="log")
    right.legend()
bound = decay_bound(near, width)
fifths = bound.reshape(5, 50).mean(1)
publish(first_fifth=fifths[0], last_fifth=fifths[-1], head_width=width)
spans = (torch.arange(5000, 10_000), torch.arange(90_000, 100_000))
thousands, end = (decay_bound(span, width).mean() for span in spans)
publish(rises=(bound.diff() > 0).double().mean(), thousands=thousands, end=end)
# --8<-- [end:decay]

# --8<-- [start:heads]
distances = tuple(round(2 ** (i / 2)) for i in range(27) if i != 1)  # 1, 2, 3, 4, 6 … 8192
real = experiments.by_distance(distances=distances)
mean, size = torch.tensor(real.mean), torch.tensor(real.size)  # [H, distances]
close, apart = (torch.tensor(distances) <= 8, torch.tensor(distances) > 1000)
falls, shrinks = ((s[:, apart].mean(1) < s[:, close].mean(1)).sum().item() for s in (mean, size))
highest, lowest = mean[:, close].mean(1).argmax().item(), mean[:, apart].mean(1).argmin().item()
with figure("heads") as axes:
    axes.plot(distances, mean.T, color="C5", linewidth=0.8)
    for head in (highest, lowest):
        axes.plot(distances, mean[head], label=f"head {head + 1}")
    axes.set(xlabel="Distance", ylabel="Mean score", xscale="log")
    axes.legend()
publish(heads=len(mean), falls=falls, shrinks=shrinks, highest=highest + 1, lowest=lowest + 1)
# --8<-- [end:heads]

# --8<-- [start:training]
plain = experiments.character_model(positions="sinusoidal", seed=0)
rope = experiments.character_model(positions="rotary", bases=(1e4, 5e5), seed=0)
with figure("training", columns=2, size=(7.0, 3.2)) as (left, right):
    left.plot(plain.steps, plain.loss, label="sinusoidal")
    left.plot(rope.steps, rope.loss, label="rotary")
    left.set(xlabel="Training step", ylabel="Validation loss")
    left.legend()
    right.plot(plain.places, plain.by_place["10000"])
    right.plot(rope.places, rope.by_place["10000"])
    right.plot(rope.places, rope.by_place["500000"], label="rotary, larger base")
    right.axvline(64, linestyle="--", linewidth=1, color="C3")
    right.set(xlabel="Position", ylabel="Loss", ylim=(2.0, 3.05))
    right.legend(loc="upper center")
ahead = next(s for s, loss in zip(rope.steps, rope.loss, strict=True) if loss <= plain.loss[-1])
publish(rope_loss=rope.loss[-1], plain_loss=plain.loss[-1], ahead=ahead, steps=rope.steps[-1])
# --8<-- [end:training]

# --8<-- [start:longer]
original, larger = (torch.tensor(rope.by_place[base]) for base in ("10000", "500000"))
within, beyond, scaled = original[:4].mean(), original[8:].mean(), larger[8:].mean()
publish(within=within, beyond=beyond, scaled=scaled)
# --8<-- [end:longer]

# --8<-- [start:linear]
query, key, value = torch.rand(3, 300, 16, dtype=torch.float64)
at = [rotary_tables(torch.arange(300) + shift, 16) for shift in (0, 5000)]
outputs = [rotary_linear_attention(query, key, value, *tables) for tables in at]
linear_moved = error(*outputs)
publish(linear_moved=linear_moved)
# --8<-- [end:linear]

# --8<-- [start:mistakes]
cost = experiments.mistakes()
table(
    "mistakes",
    columns=("Mistake", "Attention elsewhere", "Error of the output", "Moves with the text"),
    rows=[(name, c.weights, c.output, c.moves) for name, c in cost.items()],
    formats=("", ".0%", ".0%", ".0%"),
)
publish(**{f"layout_{name}": c for name, c in cost["wrong layout"].items()})
publish(late=cost["query one position late"].weights, restart=cost["decoding restarts at 0"].output)
publish(value_output=cost["value rotated too"].output, key_moves=cost["only the key rotated"].moves)
# --8<-- [end:mistakes]

# --8<-- [start:precision]
with figure("precision") as axes:
    for name, errors in found.error.items():
        axes.plot(shifts[1:], errors[1:], marker="o", markersize=3, label=name)
    axes.set(xlabel="Position of the first token", ylabel="Error of the scores")
    axes.set(xscale="log", yscale="log")
    axes.legend(loc="center left", bbox_to_anchor=(0, 0.36))
whole, at = torch.arange(1000), shifts.index(10_000)
publish(counts_to=(whole.bfloat16().long() == whole).int().cumprod(0).sum() - 1)
publish(at=shifts[at], angles16=found.error["bfloat16 angles"][at])
publish(tables16=max(found.error["bfloat16 tables"]), angles32=found.error["float32 angles"][at])
# --8<-- [end:precision]

# --8<-- [start:claims]
claim("relative", ours=moved, holds=moved < 1e-6, kind="exact", format=".0e")
claim("norm-kept", ours=stretched, holds=stretched < 1e-6, kind="exact", format=".0e")
left_over = fifths[-1] / fifths[0]
claim("bound-decays", ours=left_over, holds=all(fifths.diff() < 0), kind="exact", format=".2f")
claim("scores-decay", ours=falls, holds=falls == len(mean), kind="reproduced")
claim("linear-attention", ours=linear_moved, holds=linear_moved < 1e-6, kind="exact", format=".0e")
better = plain.loss[-1] - rope.loss[-1]
claim("beats-alternatives", ours=better, holds=better > 0.05, kind="reproduced", format=".2f")
longer = beyond / within
claim("any-length", ours=longer, holds=longer < 1.02, kind="reproduced", format=".2f")
# --8<-- [end:claims]
