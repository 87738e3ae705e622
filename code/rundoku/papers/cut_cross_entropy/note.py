# --8<-- [start:setup]
import torch
from torch.nn import functional as F

from rundoku.gpu.check import error
from rundoku.gpu.show import compile_table
from rundoku.papers.cut_cross_entropy import experiments, kernel, linear_cross_entropy
from rundoku.show import claim, figure, publish, table
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
