# --8<-- [start:setup]
from rundoku.gpu import records
from rundoku.gpu.show import compile_table, compiled
from rundoku.papers.flash_attention import experiments
from rundoku.show import claim, figure, publish, table

KERNEL = "rundoku.papers.flash_attention.kernel"
# --8<-- [end:setup]

# --8<-- [start:trace]
trace = experiments.softmax_trace(scores=(1.0, 3.0, 2.0, 5.0, 0.0, 4.0), values=(10.0, 20.0, 30.0, 40.0, 50.0, 60.0), block=2)
table(
    "trace",
    columns=("Block", "Scores", "Largest m", "Factor", "Sum ℓ", "Output so far"),
    rows=[(i, f"{a:g}, {b:g}", m, shrink, total, out) for i, ((a, b), m, shrink, total, _, out) in enumerate(trace.steps, 1)],
    formats=("", "", "g", ".4f", ".4f", ".4f"),
)
publish(trace_out=trace.steps[-1][-1], trace_whole=trace.whole, trace_factor=trace.steps[1][2])
# --8<-- [end:trace]

# --8<-- [start:exactness]
exact = experiments.exactness(length=130, width=32, seed=0)
names = {"standard": "softmax(QKᵀ)V as written", "tiled": "tiles in plain torch", "kernel": "Triton kernel"}
table(
    "exactness",
    columns=("Implementation", "O", "dQ", "dK", "dV"),
    rows=[(name, *exact.errors[key]) for key, name in names.items()],
    formats=("", *[".1e"] * 4),
)
publish(kernel_error=max(exact.errors.kernel), standard_error=max(exact.errors.standard), exact_tokens=130)
# --8<-- [end:exactness]

# --8<-- [start:accesses]
on_chip, lengths = (1024, 2048, 4096, 8192, 16_384), (256, 512, 1024, 2048, 4096)
by_chip = [experiments.count_accesses(length=512, width=32, sram=sram) for sram in on_chip]
by_length = [experiments.count_accesses(length=length, width=32, sram=4096) for length in lengths]
slope_m = experiments.exponent(on_chip, [count.flash for count in by_chip])
slope_n = experiments.exponent(lengths, [count.flash for count in by_length])
standard_m = experiments.exponent(on_chip, [count.standard for count in by_chip])
constants = [count.flash * sram / (512**2 * 32**2) for sram, count in zip(on_chip, by_chip)]
crossing = next(sram for sram, count in zip(on_chip, by_chip) if count.flash < count.standard) / 32**2  # in d²
publish(
    slope_m=slope_m, slope_n=slope_n, constant_low=min(constants), constant_high=max(constants), io_length=512, io_width=32, io_chip=4096
)
publish(crossing=crossing, crossing_kb=crossing * 128**2 * 2 / 1024, flash2_saves=1 - by_chip[2].flash2 / by_chip[2].flash)
# --8<-- [end:accesses]

# --8<-- [start:accesses-figure]
labels = {"standard": "Algorithm 0, standard", "flash": "Algorithm 1, FlashAttention", "flash2": "FlashAttention-2"}
with figure("accesses", columns=2, size=(7.2, 3.2), sharey=True) as (left, right):
    for name, label in labels.items():
        left.loglog(on_chip, [count[name] for count in by_chip], "o-", label=label)
        right.loglog(lengths, [count[name] for count in by_length], "o-")
    left.loglog(on_chip, [512**2 * 32**2 / sram for sram in on_chip], ":", label="N²d²/M")
    right.loglog(lengths, [length**2 * 32**2 / 4096 for length in lengths], ":")
    left.set(xlabel="on-chip memory M (elements)", ylabel="elements read and written")
    right.set(xlabel="sequence length N")
    left.legend()
# --8<-- [end:accesses-figure]

# --8<-- [start:gpt2]
medium = {"batch": 64, "heads": 16, "length": 1024, "width": 64}
gpt2 = experiments.traffic(**medium, sram=192 * 1024 // 2, dropout=0.1)  # 192 KB in elements of two bytes
rows = [
    ("Algorithms 0 and 3, as printed", gpt2.plain),
    ("the same, with a pass for the mask", gpt2.masked),
    ("the same, with a pass for mask and for dropout", gpt2.standard),
    ("Algorithms 1 and 4", gpt2.flash),
]
table(
    "gpt2",
    columns=("Forward and backward", "GB read and written", "GFLOPs"),
    rows=[(name, run.bytes / 1e9, run.flops / 1e9) for name, run in rows],
    formats=("", ".1f", ",.0f"),
)
publish(plain_gb=gpt2.plain.bytes / 1e9, masked_gb=gpt2.masked.bytes / 1e9)
publish(standard_gb=gpt2.standard.bytes / 1e9, flash_gb=gpt2.flash.bytes / 1e9)
publish(plain_gflops=gpt2.plain.flops / 1e9, flash_gflops=gpt2.flash.flops / 1e9)
publish(fewer=gpt2.standard.bytes / gpt2.flash.bytes, more_flops=gpt2.flash.flops / gpt2.plain.flops, columns=gpt2.columns, **medium)
# --8<-- [end:gpt2]

# --8<-- [start:memory]
sizes = (512, 1024, 2048, 4096, 8192)
held = experiments.held_bytes(lengths=sizes, heads=16, width=64)
with figure("memory") as axes:
    axes.loglog(sizes, [size / 2**20 for size in held.standard], "o-", label="softmax(QKᵀ)V as written")
    axes.loglog(sizes, [size / 2**20 for size in held.tiled], "o-", label="tiles in plain torch")
    axes.set(xlabel="sequence length N", ylabel="MiB held for backward")
    axes.legend()
grows = experiments.exponent(sizes, held.tiled)
publish(grows=grows, standard_grows=experiments.exponent(sizes, held.standard), bytes_a_row=held.tiled[-1] / (16 * sizes[-1]))
publish(held_standard=held.standard[-1] / 2**20, held_tiled=held.tiled[-1] / 2**20, held_length=sizes[-1])
# --8<-- [end:memory]

# --8<-- [start:compiled]
reports = compiled(KERNEL)
uses = [report.case for report in reports if report.case.endswith("bf16")]
compile_table("compiled", KERNEL, cases=tuple(dict.fromkeys(uses)))
largest = {target: max(report.shared for report in reports if report.target == target) for target in ("sm_80", "gfx942")}
publish(compiled=len(reports), spills=sum(report.spill for report in reports), a100=largest["sm_80"], lds=largest["gfx942"])
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
publish(bench_tokens=experiments.BENCH_TOKENS)
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
publish(overflow_rows=half.rows, overflow_bare=half.bare, overflow_shifted=half.shifted, overflow_limit=half.limit)
# --8<-- [end:overflow]

# --8<-- [start:claims]
claim("exact", ours=max(exact.errors.kernel), holds=exact.within.tiled and exact.within.kernel, kind="exact", format=".1e")
claim("io-chip", ours=slope_m, holds=abs(slope_m + 1) < 0.1 and abs(standard_m) < 1e-9, kind="exact", format=".2f")
claim("io-length", ours=slope_n, holds=abs(slope_n - 2) < 0.05, kind="exact", format=".2f")
claim("linear-memory", ours=grows, holds=abs(grows - 1) < 1e-6, kind="exact", format=".2f")
claim(
    "standard-traffic", ours=gpt2.standard.bytes / 1e9, holds=abs(gpt2.standard.bytes / 40.3e9 - 1) < 0.1, kind="reproduced", format=".1f"
)
claim("flash-traffic", ours=gpt2.flash.bytes / 1e9, holds=abs(gpt2.flash.bytes / 4.4e9 - 1) < 0.1, kind="reproduced", format=".1f")
claim(
    "nine-times",
    ours=gpt2.standard.bytes / gpt2.flash.bytes,
    holds=gpt2.standard.bytes > 8 * gpt2.flash.bytes,
    kind="reproduced",
    format=".1f",
)
claim(
    "more-operations", ours=gpt2.flash.flops / gpt2.plain.flops, holds=gpt2.flash.flops > gpt2.plain.flops, kind="reproduced", format=".2f"
)
# --8<-- [end:claims]
