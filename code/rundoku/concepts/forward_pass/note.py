# --8<-- [start:setup]
import math

import torch
from torch.nn import functional as F

from rundoku.concepts.forward_pass import experiments
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:toy-weights]
E = 2 * torch.eye(4)  # embeddings, a row a token: the, cat, sat, full stop
W_Q = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
W_K = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
W_V = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
W_gate = torch.tensor([[0.0, 0], [1, -1], [0, 0], [0, 0]])
W_up = torch.tensor([[0.0, 0], [0, 0], [1, 0], [0, 1]])
W_down = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]])


def normed(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()  # RMSNorm with gains of one


# --8<-- [end:toy-weights]

# --8<-- [start:toy-attention]
x0 = E[[0, 1]]  # "the cat": [N, 4]
n = normed(x0)
Q, K, V = n @ W_Q, n @ W_K, n @ W_V
later = torch.ones(2, 2).triu(1).bool()
A = (Q @ K.T / math.sqrt(4)).masked_fill(later, -math.inf).softmax(-1)
x1 = x0 + A @ V
for name, row in {"x": x0[1], "weights": A[1], "added": (A @ V)[1], "x + added": x1[1]}.items():
    print(f"{name:<10}", row.numpy().round(3))
# --8<-- [end:toy-attention]

# --8<-- [start:toy-feed-forward]
n = normed(x1)
hidden = F.silu(n @ W_gate) * (n @ W_up)
x2 = x1 + hidden @ W_down
for name, row in {"norm": n[1], "hidden": hidden[1], "x + added": x2[1]}.items():
    print(f"{name:<10}", row.numpy().round(3))
# --8<-- [end:toy-feed-forward]

# --8<-- [start:toy-head]
logits = normed(x2) @ E.T  # the head is the embedding, transposed
chances = logits.softmax(-1)
for name, row in {"norm": normed(x2)[1], "logits": logits[1], "softmax": chances[1]}.items():
    print(f"{name:<10}", row.numpy().round(3))
# --8<-- [end:toy-head]

# --8<-- [start:toy-check]
matrices = {
    "embedding": E, "blocks.0.attention.query": W_Q, "blocks.0.attention.key": W_K,
    "blocks.0.attention.value": W_V, "blocks.0.attention.output": torch.eye(4),
    "blocks.0.feed_forward.gate": W_gate, "blocks.0.feed_forward.up": W_up,
    "blocks.0.feed_forward.down": W_down,
}  # fmt: skip
model = experiments.toy({f"{name}.weight": matrix for name, matrix in matrices.items()})
theirs, found = experiments.traced(model, torch.tensor([[0, 1]]))
off = (theirs[0] - logits).abs().max()
publish(toy_off=off, toy_sat=chances[1, 2], n_hooks=len(found))
# --8<-- [end:toy-check]

# --8<-- [start:toy-stream]
NAMES = ("the", "cat", "sat", ".")
steps = {"embedding": x0, "after attention": x1, "after feed-forward": x2, "softmax": chances}
with figure("toy-stream", columns=4, size=(7.2, 2.2)) as panels:
    for axes, (title, rows) in zip(panels, steps.items(), strict=True):
        axes.bar(NAMES, rows[1])
        axes.set(title=title, ylim=(0, 1 if title == "softmax" else 3.6))
# --8<-- [end:toy-stream]

# --8<-- [start:text]
TEXT = "The capital of Japan is"
run = experiments.trace(text=TEXT)
for token, code, number in zip(run.tokens, run.bytes, run.ids, strict=True):
    print(f"{token!r:<11}{code:<25}{number:>6}")
publish(n_tokens=len(run.ids), n_bytes=len(TEXT.encode()))
missing = {*range(256)} - {*run.single_bytes}
never = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 does not use
publish(missing=len(missing), could_occur=len(missing - never))
# --8<-- [end:text]

# --8<-- [start:trace]
rows = [
    (name, " × ".join(map(str, run.shapes[name])), run.parameters[name], run.norms[name])
    for name in run.order
]  # fmt: skip
columns = ("Module", "Shape", "Parameters", "Norm at the last token")
table("trace", columns=columns, rows=rows, formats=("", "", ",", ".1f"))
best, chance = run.likely[0]
publish(best=best.strip(), chance=chance, sum_error=run.sum_error)
publish(n_layers=len(run.first) - 1)
# --8<-- [end:trace]

# --8<-- [start:stream]
layers = range(len(run.first))
with figure("stream", columns=2, size=(7.2, 3.2)) as (left, right):
    left.semilogy(layers, run.first, label="first token")
    left.semilogy(layers, run.last, label="last token")
    left.set(xlabel="Layer", ylabel="Norm")
    left.legend(loc="lower right")
    right.plot(layers[1:], run.added.attention, label="attention")
    right.plot(layers[1:], run.added.feed_forward, label="feed-forward")
    right.set(xlabel="Layer", ylabel="Norm of what is added")
    right.legend()
peak = max(run.first)
at = run.first.index(peak)
publish(peak=peak, peak_layer=at, start=run.last[0], end=run.last[-1])
publish(before_peak=run.first[at - 1], times=peak / run.last[at])
# --8<-- [end:stream]

# --8<-- [start:lens]
for i in (0, 1, 2, 8, 16, 24, 28, 29, 30):
    print(f"{i:<3} {run.favourite[i]!r:<12} {run.certainty[i]:.2f}   {run.answer[i]:.0e}")
# --8<-- [end:lens]

# --8<-- [start:lens-figure]
with figure("lens") as axes:
    axes.semilogy(layers[1:], run.answer[1:], label=best.strip())
    axes.semilogy(layers[1:], run.certainty[1:], label="favourite")
    axes.set(xlabel="Layer", ylabel="Probability")
    axes.legend()
publish(favoured=run.favourite.index(best), before=run.answer[run.favourite.index(best) - 1])
# --8<-- [end:lens-figure]

# --8<-- [start:costs]
costs = experiments.costs(text=TEXT)
whole, work = costs.all, costs.total / costs.length
rows = [
    (name, n, n / whole, costs.flops[name] / 1e6, costs.flops[name] / work)
    for name, n in costs.parameters.items()
]  # fmt: skip
columns = ("Part", "Parameters", "Share", "MFLOP a token", "Share of the work")
table("costs", columns=columns, rows=rows, formats=("", ",", ".1%", ".1f", ".1%"))
publish(whole=whole / 1e6, a_token=work / 1e6, counted=costs.torch - costs.total, even=costs.even)
publish(head_share=costs.flops.head / work, per_parameter=work / whole)
# --8<-- [end:costs]

# --8<-- [start:mistakes]
wrong = experiments.mistakes(numbers=(1, 2, 3, 4, 5))
rows = [(name, one.loss, one.right) for name, one in wrong.found.items()]
columns = ("Mistake", "Loss (nats a token)", "First choice right")
table("mistakes", columns=columns, rows=rows, formats=("", ".2f", ".0%"))
right = wrong.found.none
publish(length=wrong.length, loss=right.loss, hits=right.right, uniform=wrong.uniform)
# --8<-- [end:mistakes]

# --8<-- [start:shift]
unshifted, late = wrong.found["no shift"], wrong.found["shifted twice"]
publish(unshifted=unshifted.loss, late=late.loss)
# --8<-- [end:shift]

# --8<-- [start:unnormed]
unnormed = wrong.found["no final norm"]
publish(unnormed=unnormed.loss, unnormed_hits=unnormed.right)
# --8<-- [end:unnormed]

# --8<-- [start:reshaped]
reshaped = wrong.found["head reshaped, not transposed"]
publish(reshaped=reshaped.loss, reshaped_hits=reshaped.right)
# --8<-- [end:reshaped]

# --8<-- [start:softmax]
TEMPERATURES = (0.5, 1.0, 2.0)
heat = experiments.temperatures(text=TEXT, values=TEMPERATURES)
rows = list(zip(TEMPERATURES, heat.right, heat.late, heat.twice, strict=True))
columns = ("Temperature", "logits divided", "probabilities divided", "softmax twice")
table("temperatures", columns=columns, rows=rows, formats=(".1f", ".3f", ".3f", ".1e"))
twice = wrong.found["softmax twice"]
publish(twice=twice.loss, twice_hits=twice.right)
# --8<-- [end:softmax]

# --8<-- [start:prompts]
QUESTION, ANSWER = "What is the capital of Japan?", " The capital of Japan is Tokyo."
asked = experiments.prompts(question=QUESTION, answer=ANSWER, n_new=12)
for name, one in asked.items():
    print(f"{name:<10}{one.tokens:>3} tokens   loss {one.loss:.2f}   {one.text!r}")
plain, template, spelt = asked.plain, asked.template, asked["spelt out"]
publish(plain_loss=plain.loss, template_loss=template.loss)
publish(template_tokens=template.tokens, spelt_tokens=spelt.tokens)
# --8<-- [end:prompts]

# --8<-- [start:claims]
bytes_known = len(run.single_bytes)
claim("bytes", ours=bytes_known, holds=bytes_known == 256, kind="exact")
claim("digits", ours=" · ".join(run.digits), holds=run.digits == [*"2026"], kind="exact")
claim("pre-norm", ours=run.sum_error, holds=run.sum_error < 1e-5, kind="exact", format=".0e")
added = costs.parameters.head
claim("tied", ours=added, holds=run.tied and added == 0, kind="exact")
claim("two-thirds", ours=run.ff_ratio, holds=3 * run.ff_ratio == 8, kind="exact", format=".3f")
# --8<-- [end:claims]
