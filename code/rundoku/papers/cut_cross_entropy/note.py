"""The code of the note, in the order in which its pages show it."""

# --8<-- [start:setup]
from rundoku.papers.cut_cross_entropy import experiments
from rundoku.show import claim, figure, publish
# --8<-- [end:setup]

# --8<-- [start:response]
lengths = (4, 16, 64)
run = experiments.response(lengths=lengths, seed=0)
publish(largest=max(run.rms))
with figure("response") as axes:
    axes.plot(lengths, run.rms)
    axes.set_xlabel("Length")
    axes.set_ylabel("RMS of the output")
# --8<-- [end:response]

# --8<-- [start:claims]
claim("stays-in-scale", ours=max(run.rms) / min(run.rms), holds=max(run.rms) < 2 * min(run.rms), kind="reproduced", format=".2f")
# --8<-- [end:claims]
