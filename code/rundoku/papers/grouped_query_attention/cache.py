"""What decoding keeps: the size of the key-value cache (GQA, §1)."""


def kv_cache_bytes(n_layers: int, n_kv_heads: int, d_head: int, length: int, batch: int = 1, bytes_each: int = 2, ranks: int = 1) -> int:
    """Return the bytes of keys and values of `batch` sequences of `length` tokens, over all tensor-parallel ranks together.

    `bytes_each` is 2 in half precision. A rank needs at least one whole key-value head: with more ranks than heads every head is kept
    more than once, which is why large models want as many groups as ranks (§2.2). Raises ValueError for a number below 0, or for
    `ranks` that neither divide the key-value heads nor are a multiple of them.
    """
    for name, number in {"n_layers": n_layers, "n_kv_heads": n_kv_heads, "d_head": d_head, "length": length, "batch": batch}.items():
        if number < 0:
            raise ValueError(f"{name}: {number}; expected 0 or more")
    if ranks < 1 or (n_kv_heads % ranks and ranks % max(n_kv_heads, 1)):
        raise ValueError(f"ranks: {ranks}; expected a divisor or a multiple of n_kv_heads = {n_kv_heads}")
    # --8<-- [start:cache]
    kept = max(n_kv_heads, ranks)  # heads kept over all ranks: with ranks > G each is kept ranks/G times
    return 2 * n_layers * kept * d_head * length * batch * bytes_each  # 2: keys and values
    # --8<-- [end:cache]
