# --8<-- [start:setup]
import numpy
import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table
from rundoku.gpu.trace import accesses, steps
from rundoku.papers.cut_cross_entropy import experiments, kernel, kernel_tiles, linear_cross_entropy
from rundoku.show import claim, figure, publish, table, tiles
# --8<-- [end:setup]

# --8<-- [start:by-hand]
torch.manual_seed(0)
hidden, weight = torch.randn(5, 8), torch.randn(100, 8)
targets = torch.tensor([3, 14, 15, -100, 92])
logits = hidden @ weight.T
blocks = torch.stack([z.logsumexp(1) for z in logits.split(30, 1)])
print("lse, all at once", logits.logsumexp(1).numpy().round(4))
print("lse, in blocks  ", blocks.logsumexp(0).numpy().round(4))
print("cross_entropy   ", F.cross_entropy(logits, targets).item())
print("ours            ", linear_cross_entropy(hidden, weight, targets, block_vocab=30).item())
# --8<-- [end:by-hand]

# --8<-- [start:kernel]
torch.manual_seed(0)
hidden, weight = torch.randn(63, 48).half(), (torch.randn(197, 48) / 7).half()
targets = torch.randint(197, (63,))
exact = kernel.reference(hidden, weight, targets)  # float64, with all the logits
loss = kernel.linear_cross_entropy(hidden, weight, targets)
publish(kernel_error=error(loss, exact), torch_error=error(F.cross_entropy(F.linear(hidden, weight), targets), exact))
# --8<-- [end:kernel]

# --8<-- [start:compiled]
CASES = ("forward, bf16", "backward, hidden, bf16", "backward, weight, bf16")
reports = compile_table("compiled", "rundoku.papers.cut_cross_entropy.kernel", cases=CASES)
publish(spilled=sum(report.spill for report in reports))
# --8<-- [end:compiled]

# --8<-- [start:watch]
log2 = torch.tensor(2.0).log()  # every exponential will be a power of two
h = log2 * torch.tensor([[1, 1], [2, 0], [0, 0], [1, 0], [0, 1]])
w = torch.tensor([[0.0, 3], [0, 2], [0, 1], [0, 1], [1, 3], [1, 1], [0, 0], [0, 0], [2, 1], [1, 1]])
t = torch.tensor([4, 8, -100, 0, 0])  # the third token is ignored
(N, C), V, shares, blocks = h.shape, len(w), 2, 3  # blocks of words
TILE = (2, 4, 2)  # tokens, words, elements of h and w
tokens, n_tokens = kernel._counted(t, -100)
partial, dh, dw = torch.zeros(shares, N), torch.zeros(shares, N, C), torch.zeros(V, C)
sizes, upstream = (V, C, C, C), (torch.ones(N), torch.ones(N))


def forward():
    inputs = (h, w, None, tokens, n_tokens, partial, N)
    kernel_tiles.logsumexp_kernel[(6,)](*inputs, *sizes, 0.0, blocks, shares, *TILE, False, "ieee")


def for_hidden():
    inputs = (h, w, None, t, tokens, n_tokens, None, partial.logsumexp(0), *upstream, dh, N)
    options = (0.0, 0.0, blocks, shares, *TILE, False, False, "ieee")
    kernel_tiles.hidden_kernel[(6,)](*inputs, *sizes, *options)


def for_weight():
    inputs = (h, w, None, t, tokens, n_tokens, None, partial.logsumexp(0), *upstream, dw, None, 0)
    kernel_tiles.weight_kernel[(3,)](*inputs, *sizes, 0.0, 0.0, *TILE, False, False, "ieee")


passes = {"forward": accesses(forward)}
passes |= {"backward: dh": accesses(for_hidden), "backward: dw": accesses(for_weight)}
with figure("walks", rows=3, size=(3.6, 5)) as three:
    for axes, (title, touched) in zip(three, passes.items(), strict=True):
        made_by = numpy.full((N, V), -1)  # for a logit, a program reads a row of h and one of w
        for program in range(6):
            rows, columns = (touched.loads(matrix, program).any(1) for matrix in (h, w))
            made_by[numpy.ix_(rows, columns)] = program
        tiles(axes, made_by)
        axes.set(title=title, ylabel="tokens")
    axes.set(xlabel="words")
# --8<-- [end:watch]

# --8<-- [start:turns]
for step in steps(kernel_tiles.logsumexp_kernel, forward, program=4):
    if step.name in ("total", "peak") or step.source.startswith("z = tl.where"):
        print(step)
print("Σ exp of the first share ", partial.exp()[0, 3:].numpy().round(3))
print("Σ exp of the second share", partial.exp()[1, 3:].numpy().round(3))
print("log-sum-exp of both      ", partial.logsumexp(0)[3:].numpy().round(4))
print("torch                    ", (h @ w.T).logsumexp(1)[3:].numpy().round(4))
# --8<-- [end:turns]

# --8<-- [start:gradients-watched]
for step in steps(kernel_tiles.gradient_tile, for_hidden, program=1):
    if step.name in ("p", "g"):
        print(step)
# --8<-- [end:gradients-watched]

# --8<-- [start:owned]
with figure("owned", columns=2, size=(3.7, 1.6)) as two:
    tiles(two[0], passes["backward: dh"].writer(dh).swapaxes(0, 1).reshape(N, shares * C))
    tiles(two[1], passes["backward: dw"].writer(dw).T)
    two[0].set(title="sums of dh")
    two[1].set(title="sums of dw, transposed")
# --8<-- [end:owned]

# --8<-- [start:counted]
N, V, C, SIDE = 128, 500, 16, 32  # in float16, and the interpreter's tile
h, w = torch.randn(N, C).half().requires_grad_(), torch.randn(V, C).half().requires_grad_()
losses = []
there = accesses(lambda: losses.append(kernel.linear_cross_entropy(h, w, torch.arange(N))))
back = accesses(losses[0].backward)
down, across = -(-N // SIDE), -(-V // SIDE)
walk = 2 * C * (down * V + across * N)  # w for every block of tokens, h for every block of words
own = 2 * C * 2 * N  # one row of each for a token's own logit
sums = 4 * C * (across * N + down * V)  # of both backward passes, once a tile
shares = kernel._splits(down, across)
read, read_back = (2 * int(each.loads(h).sum() + each.loads(w).sum()) for each in (there, back))
publish(read=read, walk=walk + own, read_back=read_back, walk_back=3 * walk)
publish(stored=there.traffic.stored, losses=4 * N * (shares + 1), logits_bytes=4 * N * V)
publish(stored_back=back.traffic.stored, sums=sums, held_back=back.traffic.stored_once)
publish(few_tokens=N, few_words=V, few_columns=C)
# --8<-- [end:counted]

# --8<-- [start:memory]
SIZES = (1024, 4096, 16_384, 65_536)
peak = experiments.memory(tokens=512, width=32, vocabularies=SIZES)
with figure("memory") as axes:
    for name, label in (("all", "logits at once"), ("blocks", "in blocks"), ("gradients", "gradients alone")):
        axes.loglog(SIZES, [n / 2**20 for n in peak[name]], "o-", label=label, base=2)
    axes.set(xlabel="Vocabulary", ylabel="Memory (MiB)")
    axes.legend()
publish(vocabulary=SIZES[-1], at_once=peak["all"][-1] / 2**20, in_blocks=peak["blocks"][-1] / 2**20)
publish(loss_blocks=peak["blocks, loss"][-1] / 2**20, loss_at_once=peak["all, loss"][-1] / 2**20)
# --8<-- [end:memory]

# --8<-- [start:gemma]
N, C, V = 8192, 2304, 256_000
lower = 2 * (N * C + V * C) / 2**20  # both gradients, in bfloat16
logits_once = 4 * N * V / 2**20  # in float32
held = experiments.held(tokens=N, vocabulary=V, width=C, target="sm_80")
publish(lower=lower, logits_once=logits_once, held_loss=held["loss"], held_both=held["both"])
# --8<-- [end:gemma]

# --8<-- [start:sparsity]
TEXTS = {"en": "English", "ja": "Japanese", "code": "Python"}
real = {t: experiments.real_text(name=t, length=256) for t in TEXTS}
with figure("sparsity") as axes:
    for t, name in TEXTS.items():
        axes.loglog(real[t].ranks, real[t].ranked, label=name)
    axes.axhline(2**-12, color="C3", linestyle=":")
    axes.set(xlabel="Rank of the token", ylabel="Probability", ylim=(1e-10, 1))
    axes.legend()
english = real["en"]
publish(share=english.share, each=english.each, rank=english.rank, mass=english.mass)
publish(smol_vocabulary=49_152, text_tokens=english.tokens)
# --8<-- [end:sparsity]

# --8<-- [start:blocks]
WAYS = {"shuffled": "shuffled", "natural": "as the tokenizer has it", "sorted": "by average logit", "by rank": "by average probability"}
rows = [(label, *(real[t].blocks[way] for t in TEXTS)) for way, label in WAYS.items()]
table("blocks", columns=("Order of the vocabulary", *TEXTS.values()), rows=rows, formats=("", *[".0%"] * 3))
publish(natural=english.blocks["natural"], sorted=english.blocks["sorted"], by_rank=english.blocks["by rank"])
publish(block=experiments.BLOCK, small=english.elements["16"])
# --8<-- [end:blocks]

# --8<-- [start:gradients]
apart = experiments.gradients(name="en", length=256)
rows = [(name, *apart[way]) for way, name in (("filtered", "filtered"), ("rounded", "rounded to bfloat16"))]
columns = ("Gradient", "Error, hidden states", "Error, output matrix")
table("errors", columns=columns, rows=rows, formats=("", ".2e", ".2e"))
publish(loss_apart=apart.apart, rows_lost=apart.rows, norm_lost=apart.lost)
# --8<-- [end:gradients]

# --8<-- [start:scratch]
NAMES = {"none": "exact", "both": "both filtered", "hidden": "hidden states filtered"}
runs = {way: experiments.from_scratch(filtering=way, steps=90, seed=0) for way in NAMES}
with figure("scratch") as axes:
    for (way, label), style in zip(NAMES.items(), ("-", "--", ":"), strict=True):
        axes.plot(runs[way].steps, runs[way].loss, style, label=label)
    axes.set(xlabel="Training step", ylabel="Validation loss")
    axes.legend()
late = {way: run.loss[2] - runs["none"].loss[2] for way, run in runs.items()}  # at step 60
publish(scratch_words=8192, late_step=60, late=late["both"], late_hidden=late["hidden"])
# --8<-- [end:scratch]

# --8<-- [start:means]
torch.manual_seed(0)
z, t = torch.randn(12, 50), torch.randint(50, (12,))
t[3:9] = -100  # a prompt that is not trained on
right = F.cross_entropy(z, t)
summed = F.cross_entropy(z, t, reduction="sum")
parts = torch.stack([F.cross_entropy(z[:4], t[:4]), F.cross_entropy(z[8:], t[8:])])
# token 8 is ignored, too: both chunks hold three that count, until the text is cut elsewhere
uneven = torch.stack([F.cross_entropy(z[:2], t[:2]), F.cross_entropy(z[2:], t[2:])])
publish(right=right, all_tokens=summed / 12, even=parts.mean(), uneven=uneven.mean())
# --8<-- [end:means]

# --8<-- [start:overflow]
publish(overflow=english.overflow, largest=english.largest)
# --8<-- [end:overflow]

# --8<-- [start:softcap]
z = torch.tensor([[40.0, 10.0, 0.0]])
before = (30 * torch.tanh(z / 30)).logsumexp(1) - 30 * torch.tanh(z[:, 1] / 30)
after = 30 * torch.tanh(z.logsumexp(1) / 30) - z[:, 1]
publish(cap_before=before, cap_after=after)
# --8<-- [end:softcap]

# --8<-- [start:labels]
try:
    kernel.linear_cross_entropy(hidden, weight, torch.full((63,), 197))
except ValueError as problem:
    print(problem)
# --8<-- [end:labels]

# --8<-- [start:claims]
claim("lower-bound", ours=lower, holds=round(lower) == 1161, kind="exact", format=",.0f")
claim("baseline", ours=3 * logits_once, holds=round(3 * logits_once) == 24_000, kind="exact", format=",.0f")
claim("loss-memory", ours=held["loss"], holds=held["loss"] <= 1, kind="reproduced", format=".2f")
claim("both-memory", ours=held["both"], holds=held["both"] < 1.25 * 1164, kind="reproduced", format=",.0f")
claim("sparse", ours=english.share, holds=english.share < 0.0002, kind="reproduced", format=".2%")
saved = 1 - english.blocks["sorted"] / english.blocks["natural"]
claim("sorting", ours=saved, holds=saved > 0.13, kind="reproduced", format=".0%")
worse = max(f / r for f, r in zip(apart.filtered, apart.rounded, strict=True))
claim("no-loss", ours=worse, holds=worse <= 1, kind="reproduced", format=".1f")
claim("pretraining", ours=late["both"], holds=late["both"] > 0.1, kind="reproduced", format=".2f")
claim("full-c", ours=late["hidden"], holds=late["hidden"] < 0.1, kind="reproduced", format=".2f")
# --8<-- [end:claims]
