# --8<-- [start:setup]
import numpy
import torch

from rundoku.gpu import records
from rundoku.gpu.show import compile_table
from rundoku.papers.flash_attention import benchmarks, experiments
from rundoku.papers.flash_attention import flash_attention, flash_attention_varlen, flash_decode
from rundoku.show import claim, figure, publish, table, tiles

KERNEL = "rundoku.papers.flash_attention.kernel"
# --8<-- [end:setup]

# --8<-- [start:trace]
trace = experiments.softmax_trace(scores=(1, 3, 2, 5, 0, 4), values=(10, 20, 30, 40, 50, 60), block=2)
steps = [(f"{a}, {b}", m, shrink, total, out) for (a, b), m, shrink, total, _, out in trace.steps]
table(
    "trace",
    columns=("Block", "Scores", "Largest m", "Factor", "Sum ℓ", "Output so far"),
    rows=[(i, *step) for i, step in enumerate(steps, 1)],
    formats=("", "", "g", ".4f", ".4f", ".4f"),
)
publish(trace_whole=trace.whole, trace_factor=steps[1][2])
# --8<-- [end:trace]

# --8<-- [start:exactness]
exact = experiments.exactness(length=130, width=32, seed=0)
names = {
    "standard": "softmax(QKᵀ)V as written",
    "tiled": "tiles in plain torch",
    "kernel": "Triton kernel",
}
table(
    "exactness",
    columns=("Implementation", "O", "dQ", "dK", "dV"),
    rows=[(name, *exact.errors[key]) for key, name in names.items()],
    formats=("", *[".1e"] * 4),
)
largest = {key: max(exact.errors[key]) for key in names}
publish(kernel_error=largest["kernel"], standard_error=largest["standard"], exact_tokens=130)
# --8<-- [end:exactness]

# --8<-- [start:forms]
lengths = (100, 37, 1)
starts = torch.tensor([0, 100, 137, 138], dtype=torch.int32)
generator = torch.Generator().manual_seed(0)
tokens = torch.randn(3, sum(lengths), 4, 16, generator=generator)  # q, k, v: [T, H, D]
packed = flash_attention_varlen(*tokens, starts, starts, 100, 100, causal=True)
sequences = [part.transpose(1, 2)[:, None] for part in tokens.split(lengths, 1)]
alone = [flash_attention(*each, causal=True) for each in sequences]  # [1, H, N, D]
apart = packed - torch.cat([out[0].transpose(0, 1) for out in alone])

query, key, value = sequences[0]
filled = torch.tensor([100], dtype=torch.int32)
decoded = flash_decode(query[:, :, -1:], key, value, filled, num_splits=3)
publish(packed_apart=apart.abs().max().item())
publish(decoded_apart=(decoded - alone[0][:, :, -1:]).abs().max().item())
# --8<-- [end:forms]

# --8<-- [start:watch]
from rundoku.gpu import trace as watch
from rundoku.papers.flash_attention import kernel_backward, kernel_forward

N, LOG2 = 5, torch.tensor(2.0).log().item()
key = torch.tensor([0.0, 0, 1, 2, 3]).view(1, 1, N, 1)  # [B, G, M, D], one wide
value = torch.tensor([-16.0, 0, 0, 0, 0]).view(1, 1, N, 1)
query, dout = torch.ones(2, 1, 1, N, 1)
out, dq, dk, dv = torch.empty(4, 1, 1, N, 1)
lse, delta = torch.empty(2, 1, 1, N)
inputs, kept = (query, key, value, None, None, None), (lse, delta, dout)
strides = query.stride()[:3]
sizes = (0, 0, 1, 1, N, N, N, LOG2, 0.0, -1, 0)  # … heads, group, N, M, N, τ, softcap, left, right
options = {"D": 1, "BLOCK_N": 2, "BLOCK_M": 2, "HAS_LEFT": False, "HAS_RIGHT": True}
options |= dict.fromkeys(("ALIBI", "SOFTCAP", "PACKED"), False) | {"PRECISION": "ieee"}
on_keys = kernel_backward.backward_keys_kernel
on_queries = kernel_backward.backward_queries_kernel
kernel_forward.forward_kernel[(3,)](*inputs, out, lse, *strides * 4, *sizes, **options)


def backward():
    kernel_backward.delta_kernel[(3,)](out, dout, None, delta, *strides * 2, 1, N, 1, 2, False)
    on_keys[(3,)](*inputs, *kept, dk, dv, *strides * 6, *sizes, **options)
    on_queries[(3,)](*inputs, *kept, dq, *strides * 5, *sizes, **options)


backward()
# --8<-- [end:watch]


# --8<-- [start:backward-tiles]
def walked(kernel):
    """Return which program computed which scores, from the kernel's own variables."""
    owners = numpy.full((6, 6), -1)
    for program in range(3):
        now = {}
        for step in watch.steps(kernel, backward, program):
            now[step.name] = step.value
            if step.name == "weights":
                owners[now["rows"][:, None], now["columns"]] = program
    return owners[:N, :N]


written = watch.accesses(backward)
ratios = {"width_ratios": (5.1, 5.1, 1.1), "height_ratios": (5.1, 1.1)}
with figure("backward-tiles", rows=2, columns=3, size=(6.4, 4.2), **ratios) as axes:
    (by_keys, by_queries, beside), (below, *unused) = axes
    tiles(by_keys, walked(on_keys))
    tiles(below, written.writer(dk)[0, 0].T)
    tiles(by_queries, walked(on_queries))
    tiles(beside, written.writer(dq)[0, 0])
    by_keys.set(title="Kernel for dK and dV", xlabel="Key", ylabel="Query")
    by_queries.set(title="Kernel for dQ", xlabel="Key")
    below.set(title="dK")
    beside.set(title="dQ")
    for one in unused:
        one.axis("off")
# --8<-- [end:backward-tiles]

# --8<-- [start:backward-turns]
for kernel, program in ((on_keys, 1), (on_queries, 0)):
    print(f"{kernel.fn.__name__}, program {program}")
    for step in watch.steps(kernel, backward, program):
        if step.name in ("columns", "rows", "weights", "ds", "dv", "dk", "dq"):
            print(f"{step.name:>10} ", step.value.squeeze().tolist())
# --8<-- [end:backward-turns]

# --8<-- [start:decode]
from rundoku.papers.flash_attention import kernel_decode

filled = torch.tensor([352, 128], dtype=torch.int32)  # of the cache's 384 places
query, key = torch.zeros(2, 2, 1, 16).half(), torch.ones(2, 1, 384, 16).half()
value = (torch.arange(384) // 32).half().view(384, 1).expand(2, 1, 384, 16)


def decode():
    return flash_decode(query, key, value, filled, num_splits=3)


touched = watch.accesses(decode)
readers = numpy.full((2, 384), -1)
for program in range(6):
    readers[touched.loads(key, program)[:, 0, :, 0] > 0] = program
with figure("splits", size=(6.4, 1.6)) as axes:
    tiles(axes, readers[:, ::32])
    axes.set(xlabel="Cache, in blocks of keys", ylabel="Sequence")
publish(most_loads=touched.loads(key).max())
# --8<-- [end:decode]

# --8<-- [start:combine]
for program in (0, 2):
    for step in watch.steps(kernel_decode.combine_kernel, decode, program):
        if step.name in ("lses", "weights", "o"):
            print(step)
# --8<-- [end:combine]

# --8<-- [start:moved]
from rundoku.papers.flash_attention.kernel_costs import ROWS, TENSORS

H, N, D = 4, 112, 16  # float16, causal
q, k, v, dout = torch.randn(4, 1, H, N, D).half()
inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
o = flash_attention(*inputs, causal=True)
there = watch.accesses(lambda: flash_attention(*inputs, causal=True)).traffic
back = watch.accesses(lambda: o.backward(dout)).traffic
tensor, row = H * N * D * 2, H * N * 4  # bytes of q; of one float32 a query
formula = TENSORS["forward"] * tensor + ROWS["forward"] * row
formula_back = 8 * tensor + 3 * row  # q k v o do dq dk dv; lse, and delta twice
publish(moved=there.loaded_once + there.stored, formula=formula)
publish(moved_back=back.loaded_once + back.stored, formula_back=formula_back)
publish(again=there.loaded / there.loaded_once, again_back=back.loaded / back.loaded_once)
publish(H=H, N=N, D=D)

cache, rows, splits = 2 * filled.sum().item() * 16 * 2, query[..., 0].numel(), 3
parts = 8 * splits * rows * (16 + 1)  # float32, written and read
formula_decode = cache + parts + rows * (2 * 16 * 2 + 4)  # q, out and lse
decoded = touched.traffic.loaded_once + touched.traffic.stored
publish(decoded=decoded, cache=cache, formula_decode=formula_decode)
publish(parts=parts, lengths=decoded - formula_decode)
# --8<-- [end:moved]

# --8<-- [start:accesses]
width, at_length, at_chip = 32, 512, 4096
chips, lengths = (1024, 2048, 4096, 8192, 16_384), (256, 512, 1024, 2048, 4096)
by_chip = [experiments.count_accesses(length=at_length, width=width, sram=chip) for chip in chips]
by_length = [experiments.count_accesses(length=n, width=width, sram=at_chip) for n in lengths]
slope_m = experiments.exponent(chips, [count.flash for count in by_chip])
slope_n = experiments.exponent(lengths, [count.flash for count in by_length])

sizes = [(at_length, chip) for chip in chips] + [(n, at_chip) for n in lengths]
runs = by_chip + by_length
flash_constant = [run.flash * m / (n * width) ** 2 for (n, m), run in zip(sizes, runs)]
standard_constant = [run.standard / (n * width + n**2) for (n, m), run in zip(sizes, runs)]
low, high = min(flash_constant), max(flash_constant)
crossing = next(chip for chip, run in zip(chips, by_chip) if run.flash < run.standard) / width**2
publish(slope_m=slope_m, slope_n=slope_n, constant_low=low, constant_high=high)
publish(crossing=crossing, crossing_kb=crossing * 128**2 * 2 / 1024)  # in d², and in KB at d = 128
publish(flash2_saves=1 - by_chip[2].flash2 / by_chip[2].flash)
publish(io_length=at_length, io_width=width, io_chip=at_chip)
# --8<-- [end:accesses]

# --8<-- [start:accesses-figure]
labels = {
    "standard": "Algorithm 0, standard",
    "flash": "Algorithm 1, FlashAttention",
    "flash2": "FlashAttention-2",
}
with figure("accesses", columns=2, size=(7.2, 3.2), sharey=True) as (left, right):
    for name, label in labels.items():
        left.loglog(chips, [count[name] for count in by_chip], "o-", label=label)
        right.loglog(lengths, [count[name] for count in by_length], "o-")
    left.loglog(chips, [(at_length * width) ** 2 / chip for chip in chips], ":", label="N²d²/M")
    right.loglog(lengths, [(n * width) ** 2 / at_chip for n in lengths], ":")
    left.set(xlabel="on-chip memory M (elements)", ylabel="elements read and written")
    right.set(xlabel="sequence length N")
    for axes, sizes_shown in ((left, chips), (right, lengths)):
        axes.set_xticks(sizes_shown, [f"{size:,}" for size in sizes_shown])
        axes.set_xticks([], minor=True)
    left.legend()
# --8<-- [end:accesses-figure]

# --8<-- [start:gpt2]
medium = {"batch": 64, "heads": 16, "length": 1024, "width": 64}
on_chip = 192 * 1024 // 2  # 192 KB in elements of two bytes
gpt2 = experiments.traffic(**medium, sram=on_chip, dropout=0.1)
named = {
    "Algorithms 0 and 3, as printed": gpt2.plain,
    "the same, with a pass for the mask": gpt2.masked,
    "the same, with a pass for mask and for dropout": gpt2.standard,
    "Algorithms 1 and 4": gpt2.flash,
}
table(
    "gpt2",
    columns=("Forward and backward", "GB read and written", "GFLOPs"),
    rows=[(name, run.bytes / 1e9, run.flops / 1e9) for name, run in named.items()],
    formats=("", ".1f", ",.0f"),
)
plain_gb, masked_gb, standard_gb, flash_gb = (run.bytes / 1e9 for run in named.values())
more_flops = gpt2.flash.flops / gpt2.plain.flops
publish(plain_gb=plain_gb, masked_gb=masked_gb, standard_gb=standard_gb, flash_gb=flash_gb)
publish(plain_gflops=gpt2.plain.flops / 1e9, flash_gflops=gpt2.flash.flops / 1e9, more_flops=more_flops)
publish(columns=gpt2.columns, **medium)
# --8<-- [end:gpt2]

# --8<-- [start:memory]
tokens = (512, 1024, 2048, 4096, 8192)
held = experiments.held_bytes(lengths=tokens, heads=16, width=64)
with figure("memory") as axes:
    axes.loglog(tokens, [size / 2**20 for size in held.standard], "o-", label=names["standard"])
    axes.loglog(tokens, [size / 2**20 for size in held.tiled], "o-", label=names["tiled"])
    axes.set(xlabel="sequence length N", ylabel="MiB held for backward")
    axes.set_xticks(tokens, [f"{n:,}" for n in tokens])
    axes.set_xticks([], minor=True)
    axes.legend()
grows = experiments.exponent(tokens, held.tiled)
publish(grows=grows, standard_grows=experiments.exponent(tokens, held.standard))
publish(bytes_a_row=held.tiled[-1] / (16 * tokens[-1]), held_length=tokens[-1])
publish(held_standard=held.standard[-1] / 2**20, held_tiled=held.tiled[-1] / 2**20)
# --8<-- [end:memory]

# --8<-- [start:compiled]
kinds = ("forward", "backward, keys", "backward, queries", "decode, 16 rows")
shown = tuple(f"{kind}, D = 128, bf16" for kind in kinds)
reports = compile_table("compiled", KERNEL, cases=shown)
shared = {name: max(r.shared for r in reports if r.target == name) for name in ("sm_80", "gfx942")}
publish(compiled=len(reports), spills=sum(report.spill for report in reports))
publish(a100=shared["sm_80"], lds=shared["gfx942"])
# --8<-- [end:compiled]

# --8<-- [start:recorded]
measured = [
    (record.device, m.sizes["N"], m.sizes["D"], m.provider, m.flops_per_s / 1e12, m.roofline)
    for record in records.load(records.folder(KERNEL))
    for m in record.measurements
    if m.case == "forward and backward"
]
table(
    "recorded",
    columns=("Device", "N", "D", "Implementation", "TFLOP/s", "Share of the roofline"),
    rows=measured or [("nothing measured yet", None, None, None, None, None)],
    formats=("", ",", "", "", ".0f", ".0%"),
)
publish(bench_tokens=benchmarks.TOKENS)
# --8<-- [end:recorded]

# --8<-- [start:rescale]
rescale = experiments.without_rescaling(length=64, width=16, block=8, seed=0)
publish(rescale_wrong=rescale.wrong, rescale_right=rescale.right, rescale_lucky=rescale.first)
# --8<-- [end:rescale]

# --8<-- [start:empty]
empty = experiments.empty_rows(queries=5, keys=2)
publish(empty_rows=empty.empty, empty_naive=empty.naive, empty_guarded=empty.guarded)
# --8<-- [end:empty]

# --8<-- [start:corner]
corner = experiments.alignment(length=16, width=8, seed=0)
for name, mask in (("FlashAttention-2.1", corner.ours), ("scaled_dot_product_attention", corner.torch)):
    print(name, *("".join(f"{allowed:2}" for allowed in row) for row in mask), sep="\n")
publish(corner_right=corner.bottom_right, corner_wrong=corner.top_left)
# --8<-- [end:corner]

# --8<-- [start:overflow]
half = experiments.overflow(length=256, width=64, seed=0)
publish(overflow_rows=half.rows, overflow_limit=half.limit)
publish(overflow_bare=half.bare, overflow_shifted=half.shifted)
# --8<-- [end:overflow]

# --8<-- [start:claims]
within = exact.within  # twice the error of plain torch
worst, fewer = largest["kernel"], standard_gb / flash_gb
claim("exact", ours=worst, holds=within.tiled and within.kernel, kind="exact", format=".1e")
claim("flash-io", ours=f"{low:.1f}–{high:.1f} N²d²/M", holds=high < 1.5 * low, kind="exact")
four = standard_constant[0]
same = max(standard_constant) - min(standard_constant)
claim("standard-io", ours=f"{four:.1f} (Nd + N²)", holds=same < 1e-9, kind="exact")
claim("linear-memory", ours=grows, holds=abs(grows - 1) < 1e-6, kind="exact", format=".2f")
claim(
    "standard-traffic",
    ours=standard_gb,
    holds=abs(standard_gb / 40.3 - 1) < 0.1,
    kind="reproduced",
    format=".1f",
)
claim(
    "flash-traffic",
    ours=flash_gb,
    holds=abs(flash_gb / 4.4 - 1) < 0.1,
    kind="reproduced",
    format=".1f",
)
claim("nine-times", ours=fewer, holds=fewer > 8, kind="reproduced", format=".1f")
more = more_flops / (75.2 / 66.6)
claim("more-operations", ours=more_flops, holds=0.95 < more < 1.05, kind="reproduced", format=".2f")
# --8<-- [end:claims]
