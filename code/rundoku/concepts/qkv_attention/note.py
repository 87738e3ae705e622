# --8<-- [start:setup]
import math

import torch
from torch.nn import functional as F

from rundoku.concepts.qkv_attention import experiments, scaled_dot_product_attention
from rundoku.show import claim, figure, heatmap, publish, table
from rundoku.show.colors import INK, PAPER
# --8<-- [end:setup]

# --8<-- [start:projections]
X = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 2]])  # the, cat, sat
W_Q = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]])
W_K = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]])
W_V = torch.tensor([[0, 2, 0, 1], [1, 0, 0, 2], [2, 0, 1, 0], [0, 1, 1, 0]])
Q, K, V = X @ W_Q, X @ W_K, X @ W_V  # [N, 4] each
for name, matrix in {"Q": Q, "K": K, "V": V}.items():
    print(name, matrix.numpy(), sep="\n")
# --8<-- [end:projections]

# --8<-- [start:scores]
scores = Q @ K.T  # [N, N]: row = who asks, column = who is asked
scaled = scores / math.sqrt(4)  # the square root of the head width
print("scores", scores.numpy(), "scaled", scaled.numpy(), sep="\n")
# --8<-- [end:scores]

# --8<-- [start:weights]
powers = scaled.exp()
weights = powers / powers.sum(1, keepdim=True)  # softmax: every row adds up to 1
output = weights @ V.float()  # [N, 4]
for name, matrix in {"weights": weights, "output": output}.items():
    print(name, matrix.numpy().round(3), sep="\n")
theirs = F.scaled_dot_product_attention(Q.float(), K.float(), V.float())
by_hand = (output - theirs).abs().max()
publish(by_hand=by_hand)
# --8<-- [end:weights]

# --8<-- [start:worked]
TOKENS = ("the", "cat", "sat")
steps = {"X": X, "Q": Q, "K": K, "V": V, "QKᵀ": scores, "QKᵀ/√d": scaled, "A": weights, "AV": output}
with figure("worked", rows=2, columns=4, size=(7.2, 3.8)) as panels:
    for axes, (title, matrix) in zip(panels.flat, steps.items(), strict=True):
        heatmap(axes, matrix, ylabels=TOKENS, xlabels=TOKENS if matrix.shape[1] == 3 else ())
        axes.set_title(title)
        axes.set_anchor("N")
        for row, numbers in enumerate(matrix.tolist()):
            for column, x in enumerate(numbers):
                text = f"{x:.2f}" if title in ("A", "AV") else f"{x:g}"
                color = PAPER if x > 0.6 * matrix.max() else INK
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color)
# --8<-- [end:worked]

# --8<-- [start:dictionary]
book = dict(zip(TOKENS, V.float(), strict=True))  # a key matches or does not
keys = torch.eye(3)  # three keys at right angles
for beta in (0, 1, 4, 16):
    query = beta * keys[1:2]
    soft = scaled_dot_product_attention(query, keys, V.float(), scale=1.0)[0]
    print(f"β = {beta:<4}", soft.numpy().round(3))
print("book    ", book["cat"].numpy())
far = (soft - book["cat"]).abs().max()
publish(dictionary=far)
# --8<-- [end:dictionary]

# --8<-- [start:trace]
TEXT = "The cat sat on the mat because it was tired."
run = experiments.trace(text=TEXT)
NAMES = {
    "embedding": "embedding", "x": "after RMSNorm", "query": "query, rotated",
    "key": "key, rotated", "value": "value", "weights": "weights",
    "heads": "heads", "added": "added to the residual stream",
}  # fmt: skip
sizes = {name: " × ".join(map(str, shape)) for name, shape in run.shapes.items()}
rows = [(NAMES[name], sizes[name], run.norms[name]) for name in NAMES]
table("trace", columns=("Tensor", "Shape", "Mean norm"), rows=rows, formats=("", "", ".2f"))
publish(n_tokens=len(run.tokens), width=run.shapes.query[-1])
publish(n_heads=run.shapes.query[0], n_kv_heads=run.shapes.key[0])
publish(key_norm=run.norms.key, value_norm=run.norms.value)
publish(largest_score=run.scores.largest, from_torch=run.from_torch)
# --8<-- [end:trace]

# --8<-- [start:map]
LEFT, RIGHT = 3, 8
labels = [token.strip() for token in run.tokens]
with figure("map", columns=2, size=(7.2, 3.9)) as panels:
    for axes, head in zip(panels, (LEFT, RIGHT), strict=True):
        heatmap(axes, run.weights[head], xlabels=labels, ylabels=labels, high=1)
        axes.set_title(f"head {head}")
        axes.tick_params(axis="x", labelrotation=90)
asks = labels.index("it")
maps = torch.tensor(run.weights)  # [9, N, N]
articles = [i for i, token in enumerate(labels) if token.lower() == "the"]
publish(left=LEFT, right=RIGHT, on_articles=maps[RIGHT, asks, articles].sum())
publish(on_cat=maps[:, asks, labels.index("cat")].max())
near = maps[LEFT].diagonal()[1:] + maps[LEFT].diagonal(-1)  # itself and its predecessor
publish(near=near.mean())
# --8<-- [end:map]

# --8<-- [start:mistakes]
found = experiments.mistakes(text=TEXT, other=TEXT.replace("tired", "hungry"))
table(
    "mistakes",
    columns=("Mistake", "Change of the output", "Smallest sum", "Largest sum", "Leak"),
    rows=[(name, one.moved, *one.sums, one.leak) for name, one in found.items()],
    formats=("", ".2f", ".2f", ".2f", ".3f"),
)
# --8<-- [end:mistakes]

# --8<-- [start:scale]
right, raw = found.none, found["no scale"]
publish(entropy=right.entropy, raw_entropy=raw.entropy, slope=right.slope, raw_slope=raw.slope)
publish(raw_moved=raw.moved)
# --8<-- [end:scale]

# --8<-- [start:axis]
wrong = found["softmax over the queries"]
publish(axis_low=wrong.sums[0], axis_high=wrong.sums[1], axis_leak=wrong.leak)
# --8<-- [end:axis]

# --8<-- [start:swapped]
swapped = found["key and value swapped"]
publish(swapped_moved=swapped.moved)
# --8<-- [end:swapped]

# --8<-- [start:transposed]
layer = torch.nn.Linear(4, 4, bias=False)
layer.weight.data = W_Q.T.float()  # torch keeps [out, in]
x = X.float()
print("layer(x)        ", torch.equal(layer(x), Q.float()))
print("x @ layer.weight", torch.equal(x @ layer.weight, Q.float()))
publish(transposed_moved=found["x·W instead of x·Wᵀ"].moved)
# --8<-- [end:transposed]

# --8<-- [start:masked]
late = found["mask after the softmax"]
publish(late_low=late.sums[0], late_leak=late.leak, late_moved=late.moved, leak=right.leak)
# --8<-- [end:masked]

# --8<-- [start:claims]
claim("formula", ours=run.from_torch, holds=run.from_torch < 1e-6, kind="exact", format=".0e")
average = max(run.row_sum, run.outside)
claim("weighted-sum", ours=average, holds=average < 1e-6, kind="exact", format=".0e")
claim("no-leak", ours=right.leak, holds=right.leak == 0, kind="exact", format=".0f")
claim("shared-heads", ours=run.groups, holds=run.groups < 1e-6, kind="exact", format=".1g")
claim("head-width", ours=run.shapes.query[-1], holds=run.shapes.query[-1] == 64, kind="exact")
steeper = right.slope / raw.slope
claim("small-gradients", ours=steeper, holds=steeper > 2, kind="reproduced", format=".1f")
# --8<-- [end:claims]
