"""What each of flash attention's kernels works and moves at one size, by the formulas at the head of its file: matrix products alone."""

from rundoku.gpu.launch import Cost

HEADS, TOKENS = 16, 16_384  # of the fixed form one sequence, packed sixteen of a sixteenth; heads H = G, causal
CACHE = {"batch": 8, "heads": 32, "kv_heads": 8, "places": 16_384, "splits": 4}  # of the decode form: four rows a group and query

PRODUCTS = {"forward": 2, "queries": 3, "keys": 4}  # of N × M × D, for one head
TENSORS = {"forward": 4, "queries": 5, "keys": 6}  # [T, H, D] read or written: q k v o; q k v do dq; q k v do dk dv
ROWS = {"forward": 1, "queries": 2, "keys": 2}  # [H, T] float32: lse; lse and delta


def delta_cost(width: int, itemsize: int) -> Cost:
    """Return the cost of the kernel that makes Δ from outputs and their gradients, a sum of products for each row, and dL."""
    rows = HEADS * TOKENS
    return Cost(2.0 * rows * width, float(rows * (2 * width * itemsize + 8)), "float32", f"B = 1, N = {TOKENS:,}, H = {HEADS}")


def cost_of(kernel: str, width: int, itemsize: int, packed: bool) -> Cost:
    """Return the cost of a kernel as `config_for` names it, at head width D in elements of so many bytes."""
    dtype = {2: "bfloat16", 4: "float32"}[itemsize]
    if kernel in PRODUCTS:
        sequences = 16 if packed else 1
        length = TOKENS // sequences
        pairs = HEADS * sequences * length * (length + 1) // 2  # that the mask leaves
        moved = HEADS * TOKENS * (TENSORS[kernel] * width * itemsize + ROWS[kernel] * 4)
        size = f"{sequences} × N = M = {length:,}" if packed else f"B = 1, N = M = {length:,}"
        return Cost(2.0 * PRODUCTS[kernel] * pairs * width, float(moved), dtype, f"{size}, H = G = {HEADS}, causal, {dtype}")
    batch, heads, kv_heads, places, splits = CACHE.values()
    queries = 8 if kernel == "rows64" else 1
    rows = batch * heads * queries
    size = f"B = {batch}, H = {heads}, G = {kv_heads}, N = {queries}, M = {places:,}, R = {splits}, {dtype}"
    parts = splits * rows * (width + 1) * 4  # what one kernel writes and the other reads
    if kernel == "combine":
        return Cost(2.0 * splits * rows * width, float(parts + rows * (width * itemsize + 4)), "float32", size)
    cache = 2 * batch * kv_heads * places * width * itemsize
    return Cost(4.0 * rows * places * width, float(cache + rows * width * itemsize + parts), dtype, size)
