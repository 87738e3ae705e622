# --8<-- [start:setup]
from math import log, log10

import torch

from rundoku.papers import scaling_laws as laws
from rundoku.papers.scaling_laws import DecoderConfig, experiments, fit_power_law, interval
from rundoku.papers.scaling_laws.model import DecoderOnly, non_embedding_parameters
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:counts]
gpt2 = DecoderConfig(vocab_size=50_257, n_ctx=1024, n_layers=48, d_model=1600, n_heads=25)
with torch.device("meta"):  # real modules, no memory
    on_modules = non_embedding_parameters(DecoderOnly(gpt2))
rows = [(row, *count) for row, count in laws.table_1(gpt2).items()]
table("table-1", columns=("Part", "Parameters", "FLOP a token"), rows=rows, formats=("", ",", ","))
publish(gpt2_n=laws.parameters(gpt2), on_modules=on_modules)
# --8<-- [end:counts]


# --8<-- [start:allocation]
def law(kind, *constants):
    return kind(*(torch.tensor(constant) for constant in (*constants, 0.0)))


moves = laws.allocation_exponents(alpha_n=0.076, alpha_s=0.76, alpha_b=0.21)  # Eq. 1.1, 1.6, 1.4
needed = laws.tokens_needed(1e9, law(laws.JointLaw, 0.076, 0.103, 6.4e13, 1.8e13))  # Table 2
more_n, fewer_s, less_c = laws.versus_convergence(0.076, 0.76)
publish(alpha_c=moves.loss, model_power=moves.model, needed_factor=needed / 1e9**0.74)
publish(ten_n=10**0.73, ten_d=10**0.27, power_of_5_5=log10(5.5), power_of_1_8=log10(1.8))
publish(more_n=more_n, fewer_s=1 / fewer_s, less_c=1 - less_c, doubling=1 - 2**-0.21)
# --8<-- [end:allocation]

# --8<-- [start:rates]
ANCHORS = {  # layers and width, with the learning rates tried
    (2, 12): (0.008, 0.016, 0.032, 0.064),
    (2, 32): (0.004, 0.008, 0.016, 0.032),
    (4, 64): (0.002, 0.004, 0.008, 0.016),
}
tries = [(size, rate) for size, rates in ANCHORS.items() for rate in rates][::-1]  # the longest first
once = {"steps": 200, "points": 1}
pilots = [{"layers": n, "width": w, "rate": rate, **once} for (n, w), rate in tries]
ended = [run.loss[-1] for run in experiments.run.each(pilots)]
tried = dict(zip(tries, ended, strict=True))
best = {shape: min(rates, key=lambda rate: tried[shape, rate]) for shape, rates in ANCHORS.items()}
# --8<-- [end:rates]


# --8<-- [start:rule]
def count(size, **more):  # N of layers and width, for the 83 characters of the plays
    return laws.parameters(DecoderConfig(83, experiments.CONTEXT, *size), **more)


def rate_for(size):  # a power of N between the nearest anchors, to one digit
    pairs = zip(ANCHORS, list(ANCHORS)[1:], strict=False)
    low, high = next((a, b) for a, b in pairs if count(size) <= count(b))
    share = log(count(size) / count(low)) / log(count(high) / count(low))
    return float(f"{best[low] ** (1 - share) * best[high] ** share:.1g}")


# --8<-- [end:rule]


# --8<-- [start:sweep]
def case(size, steps, **more):
    return {"layers": size[0], "width": size[1], "rate": rate_for(size), "steps": steps, **more}


STEPS, SHORT = 1600, 800
SIZES = ((2, 12), (2, 16), (2, 24), (2, 32), (2, 48), (3, 48), (4, 64))
DATA, LIMITED = (8192, 16384, 32768, 65536, 0), ((2, 16), (2, 32))  # 0: all
again = [case(size, SHORT, data=n, points=5, seed=1) for size in LIMITED for n in (DATA[0], 0)]
parts = [case(size, SHORT, data=n, points=5) for size in LIMITED for n in DATA]
whole = [case(size, STEPS) for size in SIZES]
ended = iter(experiments.run.each([*again, *parts, *whole][::-1])[::-1])  # side by side, the longest first
again, parts, runs = ([next(ended) for _ in cases] for cases in (again, parts, whole))
size = torch.tensor([count(size) for size in SIZES]).double()
at = torch.tensor(runs[0].at).double()
loss = torch.tensor([run.loss for run in runs]).double()  # [sizes, steps measured]
publish(context=experiments.CONTEXT, batch=experiments.BATCH)
# --8<-- [end:sweep]

# --8<-- [start:data]
a_step = experiments.BATCH * experiments.CONTEXT
data = torch.tensor([*DATA[:-1], a_step * SHORT]).double()  # of all the text, what a run reads
stopped = torch.tensor([min(run.loss) for run in parts]).double().view(2, -1)  # early stopping
others = torch.tensor([min(run.loss) for run in again]).double().view(2, -1)
leads = [small - large for small, large in (stopped[:, [0, -1]], others)]  # of the larger, seed by seed
little, much = torch.stack(leads, 1).tolist()  # with least and with most text
# --8<-- [end:data]

# --8<-- [start:envelope]
budgets = torch.logspace(9.2, 11.68, 40).double()  # from the smallest's warm-up to the largest's end


def lowest(chosen):  # loss of the best chosen run at each budget, between its measured points
    found = torch.full((len(chosen), len(budgets)), torch.inf).double()
    for row, i in zip(found, chosen, strict=True):
        spent = (6 * size[i] * a_step * at).log()
        k = torch.searchsorted(spent, budgets.log()).clamp(1, len(at) - 1)
        share = (budgets.log() - spent[k - 1]) / (spent[k] - spent[k - 1])
        inside = (share >= 0) & (share <= 1)
        row[inside] = (loss[i, k - 1] + share * (loss[i, k] - loss[i, k - 1]))[inside]
    return found.min(0).values


# --8<-- [end:envelope]


# --8<-- [start:fits]
LEVEL = 0.95  # share of the resampled fits that an interval holds


def fitted(x, losses):
    draws = fit_power_law(x, losses, weights=laws.resampled(range(len(x))))
    return fit_power_law(x, losses), interval(draws.exponent, LEVEL)


SMALL = 5  # sizes, those of two layers; chosen after looking at the losses
by_n, in_n = fitted(size[:SMALL], loss[:SMALL, -1])
by_all, in_all = fitted(size, loss[:, -1])
by_d, in_d = fitted(data, stopped[1])
by_c = fit_power_law(budgets, lowest(range(len(SIZES))))
kept = [[i for i in range(len(SIZES)) if i != out] for out in range(len(SIZES))]
lows = [(lowest(k), lowest(k).isfinite()) for k in kept]
without = [fit_power_law(budgets[reached], low[reached]).exponent for low, reached in lows]
in_c = float(min(without)), float(max(without))
# --8<-- [end:fits]

# --8<-- [start:laws]
with figure("laws", columns=3, size=(7.2, 3.1), sharey=True) as panels:
    for n, curve in zip(size, loss, strict=True):
        panels[0].plot(6 * n * a_step * at, curve, color="C0", linewidth=1)
    panels[0].plot(budgets, by_c(budgets), "C1--", label="fit")
    for shape, losses in zip(LIMITED, stopped, strict=True):
        panels[1].plot(data, losses, marker="o", label=f"{count(shape):,} parameters")
    panels[2].plot(size, loss[:, -1], "o", label="trained")
    panels[2].plot(size, by_n(size), "--", label="fit")
    names = ("Compute, FLOP", "Data, characters", "Parameters N")
    for axes, name in zip(panels, names, strict=True):
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.legend()
    panels[0].set_ylabel("Test loss")
# --8<-- [end:laws]

# --8<-- [start:exponents]
found = {
    "Parameters, five smallest": (by_n, in_n, 0.076),
    "Parameters, all": (by_all, in_all, 0.076),
    "Data, larger model": (by_d, in_d, 0.095),
    "Compute": (by_c, in_c, 0.057),
}
rows = [(name, f.exponent, *ends, f.error, paper) for name, (f, ends, paper) in found.items()]
columns = ("Law", "Exponent", "from", "to", "Error of the fit", "In the paper")
table("exponents", columns=columns, rows=rows, formats=("", ".3f", ".3f", ".3f", ".1%", ".3f"))
publish(alpha_n=by_n.exponent, n_low=in_n[0], n_high=in_n[1], n_error=by_n.error)
publish(level=LEVEL, all_alpha=by_all.exponent, d_low=in_d[0], d_high=in_d[1], alpha_compute=by_c.exponent)
publish(limits=len(parts), rising=sum(run.loss[-1] > min(run.loss) for run in parts))
fall = loss[:, -2] - loss[:, -1]  # between the last two measurements
publish(fall_small=fall[:SMALL].mean(), fall_large=fall[SMALL:].mean(), last_but_one=int(at[-2]))
# --8<-- [end:exponents]


# --8<-- [start:efficiency]
def steps_to(target, curve):  # on a straight line between two measurements
    k = next(k for k, value in enumerate(curve) if value <= target)
    share = (curve[k - 1] - target) / (curve[k - 1] - curve[k])
    return (at[k - 1].log() + share * (at[k] / at[k - 1]).log()).exp().item()


target = loss[0, -1]
fastest = min(steps_to(target, curve) for curve in loss[1:])
sooner = STEPS / fastest
publish(target=target, fastest=fastest, sooner=sooner)
publish(little_low=min(little), little_high=max(little), much_low=min(much), much_high=max(much))
# --8<-- [end:efficiency]

# --8<-- [start:embeddings]
total = torch.tensor([count(size, embedding=True) for size in SIZES]).double()
with_embedding = fit_power_law(total[:SMALL], loss[:SMALL, -1])
small = DecoderConfig(50_257, 1024, 2, 128)  # the smallest shape that the paper names beside its Fig. 6
share = 1 - laws.parameters(small) / laws.parameters(small, embedding=True)
publish(steeper=with_embedding.exponent / by_n.exponent - 1, with_embedding=with_embedding.exponent)
publish(first_share=1 - size[0] / total[0], last_share=1 - size[-1] / total[-1], paper_share=share)
# --8<-- [end:embeddings]

# --8<-- [start:floor]
floored = fit_power_law(size, loss[:, -1], floor=True)
draws = laws.resampled(range(len(size)), at_least=4)
draws = fit_power_law(size, loss[:, -1], floor=True, weights=draws)
far = torch.logspace(3, 9, 60).double()
with figure("floor") as axes:
    axes.plot(far, by_all(far), label="power law")
    axes.plot(far, floored(far), "--", label="with a floor")
    axes.plot(size, loss[:, -1], "o", label="trained")
    axes.set(xscale="log", yscale="log", xlabel="Parameters", ylabel="Test loss")
    axes.legend()
(a_low, a_high), (f_low, f_high) = interval(draws.exponent, LEVEL), interval(draws.floor, LEVEL)
publish(floor_alpha=floored.exponent, a_low=a_low, a_high=a_high)
publish(floor=floored.floor, f_low=f_low, f_high=f_high)
publish(far_plain=by_all([1e9])[0], far_floor=floored([1e9])[0])
# --8<-- [end:floor]

# --8<-- [start:steps]
marks = [k for k, step in enumerate(at.tolist()) if step in (400, 800, 1600)]
early = [(int(at[k]), *fitted(size, loss[:, k])) for k in marks]
rows = [(step, f.exponent, *i) for step, f, i in early]
columns = ("Training steps", "Exponent", "from", "to")
table("steps", columns=columns, rows=rows, formats=(",", ".3f", ".3f", ".3f"))
publish(early_alpha=early[0][1].exponent)
# --8<-- [end:steps]

# --8<-- [start:schedule]
midway = runs[SIZES.index((2, 32))]
mid, short = midway.loss[midway.at.index(SHORT)], parts[-1].loss[-1]
publish(steps=STEPS, short_steps=SHORT, midway=mid, ended=short, lost=mid - short)
# --8<-- [end:schedule]

# --8<-- [start:one-rate]
anchors = [count(size) for size in ANCHORS]
tuned = fit_power_law(anchors, [tried[size, best[size]] for size in ANCHORS]).exponent
one, half = (fit_power_law(anchors, [tried[size, rate] for size in ANCHORS]).exponent for rate in (0.016, 0.008))
publish(tuned_alpha=tuned, one_alpha=one, half_alpha=half)
publish(rate_small=best[2, 12], rate_large=best[4, 64])
# --8<-- [end:one-rate]

# --8<-- [start:context]
contexts = (1024, 8192, 32_768, 131_072)
measured = experiments.operations(layers=48, width=1600, contexts=contexts, vocab_size=50_257).flops
six_n = 6 * laws.parameters(gpt2)
rows = []
for n, flops in zip(contexts, measured, strict=True):
    stated = laws.training_flops(DecoderConfig(50_257, n, 48, 1600, 25), 1.0, context=True)
    rows.append((n, flops / six_n, stated / six_n, 1 - six_n / flops))
columns = ("Context", "Counted / 6N", "Table 1 / 6N", "Attention's share")
table("context", columns=columns, rows=rows, formats=(",", ".2f", ".2f", ".0%"))
slope = (measured[1] - measured[0]) / (contexts[1] - contexts[0])  # what a longer context adds
matrices = measured[0] - slope * contexts[0]
publish(at_1024=rows[0][3], at_longest=rows[-1][1], twice=slope / (6 * 48 * 1600))
# --8<-- [end:context]

# --8<-- [start:claims]
six = matrices / on_modules
claim("six-n", ours=six, holds=matrices == 6 * on_modules, kind="exact", format=".3f")
five_two = round(10**0.73) == 5 and round(10**0.27) == 2
claim("five-times", ours=f"{10**0.73:.1f}, {10**0.27:.1f}", holds=five_two, kind="exact")
factor = needed / 1e9**0.74
claim("data-needed", ours=factor, holds=round(factor, -3) == 5000, kind="exact", format=",.0f")
claim("predicted", ours=moves.loss, holds=round(moves.loss, 3) == 0.054, kind="exact", format=".3f")
inside = in_all[0] <= 0.076 <= in_all[1] or in_n[0] <= 0.076 <= in_n[1]
both = f"{by_n.exponent:.3f}, {by_all.exponent:.3f}"
claim("by-size", ours=both, holds=inside, kind="reproduced")
near = abs(by_c.exponent.item() / 0.057 - 1) < 0.25
claim("by-compute", ours=by_c.exponent, holds=near, kind="reproduced", format=".3f")
claim("sample-efficient", ours=sooner, holds=sooner > 2, kind="reproduced", format=".1f")
growth = (sum(much) - sum(little)) / len(leads)
claim("little-data", ours=growth, holds=min(much) > max(little), kind="reproduced", format=".2f")
# --8<-- [end:claims]
