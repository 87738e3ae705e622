# --8<-- [start:setup]
import numpy
import torch

from rundoku.gpu.trace import steps, traffic
from rundoku.papers.flash_attention import kernel_forward
from rundoku.papers.flash_attention.kernel import config_for, flash_attention
from rundoku.papers.rms_norm import kernel
from rundoku.show import figure, publish
from rundoku.show.colors import FAINT, PAPER

# --8<-- [end:setup]

# --8<-- [start:launch]
wide = torch.full((3, 8), torch.nan)  # a row of x is a slice of a wider one
x = wide[:, :5]
x.copy_(torch.tensor([[1.0, 2, 2, 0, 4], [3, 0, 4, 0, 0], [1, 1, 1, 1, 1]]))
y, rstd = torch.full((3, 5), torch.nan), torch.full((3,), torch.nan)
ROWS, COLUMNS = 2, 8  # the tile


def launch():
    grid = (2,)  # two programs: rows 0 and 1, and row 2
    kernel._forward[grid](x, None, None, y, None, rstd, 3, 5, x.stride(0), 0, 1e-6, ROWS, COLUMNS)


launch()
print(y.numpy().round(3))
# --8<-- [end:launch]

# --8<-- [start:trace]
for step in steps(kernel._forward, launch, program=1):
    print(step)
# --8<-- [end:trace]

# --8<-- [start:tile]
with figure("reading-tile", size=(6.4, 2.8)) as axes:
    for program in range(2):
        made = {step.name: step.value for step in steps(kernel._forward, launch, program)}
        for row, inside, places in zip(made["row"], made["inside"], made["packed"], strict=True):
            for column, (is_inside, place) in enumerate(zip(inside, places, strict=True)):
                color = f"C{program}" if is_inside else "none"
                axes.barh(row, 1, height=1, left=column, align="edge", color=color, edgecolor=FAINT)
                if is_inside:
                    axes.text(column + 0.5, row + 0.5, place, ha="center", va="center", color=PAPER)
    axes.set(xlim=(0, COLUMNS), ylim=(2 * ROWS, 0), xlabel="Column", ylabel="Row")
    axes.set_xticks(numpy.arange(COLUMNS) + 0.5, range(COLUMNS))
    axes.set_yticks(numpy.arange(2 * ROWS) + 0.5, range(2 * ROWS))
    axes.grid(visible=False)
# --8<-- [end:tile]

# --8<-- [start:attend]
torch.manual_seed(0)
N, D = 112, 16
query, key, value = torch.randn(3, 1, 1, N, D)
BLOCK = config_for("interpreter", "forward", D, 4).tiles["BLOCK_N"]


def attend():
    return flash_attention(query, key, value, causal=True)


turns = steps(kernel_forward._attend, attend)  # program 0 has the last rows
at = (N - 1) % BLOCK  # in its tile, the last query: it sees every key
state = zip(*([step.value for step in turns if step.name == name] for name in ("columns", "peak", "total")), strict=True)
for columns, peak, total in state:
    print(f"keys from {columns[0]:2}   peak {peak[at]:6.3f}   total {total[at]:7.3f}")
scores = query[0, 0, -1] @ key[0, 0].T / D**0.5
print(f"log-sum-exp    {(peak[at] + numpy.log2(total[at])) * numpy.log(2):.5f}")
print(f"torch          {scores.logsumexp(0):.5f}")
# --8<-- [end:attend]

# --8<-- [start:blocks]
with figure("reading-blocks", size=(4.8, 3.8)) as axes:
    for program in range(-(-N // BLOCK)):
        outer = steps(kernel_forward.forward_kernel, attend, program)
        top = next(step.value[0] for step in outer if step.name == "rows")
        for step in steps(kernel_forward._attend, attend, program):
            if step.name == "columns":  # a turn of the loop begins
                left, color = step.value[0], "C0"
            if step.name == "allowed":  # it needs a mask
                color = "C1"
            if step.name == "acc":  # it ends
                axes.barh(top, BLOCK, height=BLOCK, left=left, align="edge", color=color, edgecolor=FAINT)
                axes.text(left + BLOCK / 2, top + BLOCK / 2, program, ha="center", va="center", color=PAPER)
    axes.plot((0, N, N, 0), (0, 0, N, N), color=FAINT, linewidth=1)
    axes.set(xlim=(0, 4 * BLOCK), ylim=(4 * BLOCK, 0), xlabel="Key", ylabel="Query", aspect="equal")
    axes.set_xticks(range(0, 4 * BLOCK + 1, BLOCK))
    axes.set_yticks(range(0, 4 * BLOCK + 1, BLOCK))
    axes.grid(visible=False)
publish(queries=N, tile_rows=BLOCK)
# --8<-- [end:blocks]

# --8<-- [start:traffic]
R, C = 64, 197
rows, gain = torch.randn(R, C).half(), torch.ones(C).half()
norm = traffic(lambda: kernel.rms_norm(rows, gain))
formula = 2 * R * C * 2 + C * 2 + R * 4  # x and y, the gain, and one float32 a row
moved = traffic(attend)
publish(norm_moved=norm.loaded_once + norm.stored_once, formula=formula, norm_loaded=norm.loaded, norm_once=norm.loaded_once)
publish(attention_loaded=moved.loaded, attention_once=moved.loaded_once, scores_bytes=N * N * 4, n_rows=R, n_columns=C)
# --8<-- [end:traffic]
