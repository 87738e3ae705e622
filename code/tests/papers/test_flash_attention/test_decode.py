"""The decode form: few queries against a cache filled to a length of its own in every sequence, its keys split and put together again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rundoku.gpu.launch import INTERPRETED
from rundoku.papers.flash_attention import attention_reference, flash_attention, flash_decode
from rundoku.papers.flash_attention.kernel import MAX_SPLITS, split_count
from rundoku.papers.flash_attention.kernel_configs import RESIDENT
from rundoku.papers.flash_attention.kernel_operators import LEAST_KEYS

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(scope="session")
def compare(hold, surrounded):
    """Return a function that holds out and lse to the 2× rule; what no sequence has filled is NaN."""

    def compare(lengths, places, queries=1, heads=4, kv_heads=2, width=16, dtype=torch.float32, slopes=None, splits=0, seed=0, **flags):
        generator, batch = torch.Generator().manual_seed(seed), len(lengths)
        sizes = ((batch, heads, queries, width), (batch, kv_heads, places, width), (batch, kv_heads, places, width))
        tensors = [surrounded(size, dtype, generator) for size in sizes]
        for b, length in enumerate(lengths):
            for cache in tensors[1:]:
                cache[b, :, length:] = float("nan")
        slope = {None: None, "head": torch.rand(heads, generator=generator), "batch": torch.rand(batch, heads, generator=generator)}[slopes]
        slope = None if slope is None else slope.to(DEVICE)
        filled = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)

        def reference(upcast):
            def call(q, k, v):
                outs, lses = [], []
                for b, length in enumerate(lengths):
                    own = None if slope is None else slope.expand(batch, heads)[b : b + 1].to(q.dtype if upcast else slope.dtype)
                    one = (q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length])
                    out, lse = attention_reference(*one, own, upcast=upcast, **flags)
                    outs.append(out)
                    lses.append(lse)
                return torch.cat(outs), torch.cat(lses)

            return call

        def ours(q, k, v):
            return flash_decode(q, k, v, filled, slope, num_splits=splits, return_lse=True, **flags)

        return hold(tensors, None, ours, plain=reference(False), exact=reference(True))

    return compare


@pytest.mark.parametrize("length", [1, 63, 64, 65, 197, 1023])
@pytest.mark.parametrize("splits", [0, 1, 3, MAX_SPLITS])
def test_lengths_and_splits(compare, length, splits):
    compare([length], max(length, 100), splits=splits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_widths_and_dtypes(compare, dtype, width):
    compare([70, 33], 80, width=width, dtype=dtype, splits=2)


@pytest.mark.skipif(INTERPRETED, reason="bfloat16 arithmetic is wrong in Triton's interpreter; this needs a GPU")
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("splits", [0, 1, 7])
def test_bfloat16(compare, width, splits):
    compare([5000, 0, 1, 333], 5001, queries=5, heads=16, kv_heads=2, width=width, dtype=torch.bfloat16, causal=True, splits=splits)


@pytest.mark.parametrize("heads, kv_heads, queries", [(1, 1, 1), (4, 4, 3), (8, 1, 2), (6, 2, 5), (8, 2, 5), (9, 1, 16)])
def test_rows_of_a_group(compare, heads, kv_heads, queries):
    """Fewer rows than a tile, as many, and more than one tile of 64 holds."""
    compare([50, 20], 50, queries=queries, heads=heads, kv_heads=kv_heads, causal=True, splits=2)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_a_ragged_batch(compare, splits):
    out, lse = compare([0, 1, 3, 90, 40], 90, queries=4, causal=True, splits=splits)
    assert (out[0] == 0).all() and (lse[0] == -float("inf")).all()  # an empty cache
    assert (out[1, :, :3] == 0).all() and (out[1, :, 3] != 0).all()  # of four queries with one key only the last sees it


@pytest.mark.parametrize("flags", [{"window_size": (20, -1)}, {"window_size": (0, 0)}, {"window_size": (9, 1), "causal": True}])
def test_windows(compare, flags):
    compare([150, 7], 160, queries=3, splits=3, **flags)


@pytest.mark.parametrize("slopes", ["head", "batch"])
def test_every_option_at_once(compare, slopes):
    flags = {"window_size": (60, 2), "softcap": 4.0, "softmax_scale": 0.4, "causal": True}
    compare([100, 33], 110, queries=5, heads=8, kv_heads=2, width=32, dtype=torch.float16, slopes=slopes, splits=4, **flags)


def test_no_batch_and_no_place():
    q, cache = torch.zeros(0, 4, 1, 16, device=DEVICE), torch.zeros(0, 2, 9, 16, device=DEVICE)
    assert flash_decode(q, cache, cache, torch.zeros(0, dtype=torch.int32, device=DEVICE)).shape == (0, 4, 1, 16)
    q, cache = torch.zeros(2, 4, 1, 16, device=DEVICE), torch.zeros(2, 2, 0, 16, device=DEVICE)
    out, lse = flash_decode(q, cache, cache, torch.zeros(2, dtype=torch.int32, device=DEVICE), return_lse=True, num_splits=2)
    assert (out == 0).all() and (lse == -float("inf")).all()


def test_the_last_rows_of_the_whole():
    """Decoding the newest three of a sequence gives the last three rows of the fixed form over all of it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 75, 16, generator=generator).to(DEVICE) for heads in (4, 2, 2))
    whole, lse = flash_attention(q, k, v, causal=True, return_lse=True)
    for splits in (0, 1, 4):
        lengths = torch.tensor([75, 75], dtype=torch.int32, device=DEVICE)
        found = flash_decode(q[:, :, -3:], k, v, lengths, causal=True, num_splits=splits, return_lse=True)
        torch.testing.assert_close(found, (whole[:, :, -3:], lse[:, :, -3:]))


def test_torch():
    q, k, v = (torch.randn(2, heads, n, 16, device=DEVICE) for heads, n in ((4, 1), (2, 60), (2, 60)))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    lengths = torch.full((2,), 60, dtype=torch.int32, device=DEVICE)
    torch.testing.assert_close(flash_decode(q, k, v, lengths, num_splits=2), theirs)


def test_layouts():
    """A cache with heads behind tokens, lengths that are a column, D not innermost: the result is that of copies."""
    q, cache = torch.randn(2, 3, 4, 16, device=DEVICE).transpose(1, 2), torch.randn(2, 40, 2, 2, 16, device=DEVICE)
    k, v = (part.transpose(1, 2) for part in cache.unbind(2))
    lengths = torch.tensor([[33, 0], [40, 0]], dtype=torch.int32, device=DEVICE)[:, 0]
    across = torch.randn(2, 2, 16, 40, device=DEVICE).transpose(-1, -2)
    for tensors in ((q, k, v), (q, across, v)):
        copies = [x.clone(memory_format=torch.contiguous_format) for x in (*tensors, lengths)]
        assert torch.equal(flash_decode(*tensors, lengths, num_splits=2), flash_decode(*copies, num_splits=2))


def test_the_same_bits_twice():
    q, cache = torch.randn(2, 4, 3, 16, device=DEVICE), torch.randn(2, 2, 90, 16, device=DEVICE)
    lengths = torch.tensor([90, 61], dtype=torch.int32, device=DEVICE)
    assert torch.equal(flash_decode(q, cache, cache, lengths, num_splits=3), flash_decode(q, cache, cache, lengths, num_splits=3))


@given(programs=st.integers(1, 5000), keys=st.integers(0, 10**6), processors=st.integers(1, 400))
def test_the_rule_for_the_number_of_splits(programs, keys, processors):
    splits = split_count(programs, keys, processors)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or (splits * programs <= RESIDENT * processors and splits * LEAST_KEYS <= keys)
    more = splits + 1  # and no fewer than that: one more would break a bound
    assert more > MAX_SPLITS or more * programs > RESIDENT * processors or more * LEAST_KEYS > keys


def test_the_rule_by_hand():
    assert split_count(programs=8, n_keys=16_384, processors=132) == 33  # an H100, eight key-value heads, one sequence
    assert split_count(programs=8, n_keys=1000, processors=132) == 3  # of a short cache no split gets fewer than LEAST_KEYS
    assert split_count(programs=1, n_keys=10**6, processors=132) == MAX_SPLITS
    assert split_count(programs=265, n_keys=10**6, processors=132) == 1


def arguments(**change):
    given = {"query": torch.zeros(2, 4, 1, 16), "key": torch.zeros(2, 2, 9, 16), "value": torch.zeros(2, 2, 9, 16)}
    given |= {"cache_lengths": torch.tensor([4, 9], dtype=torch.int32)} | change
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) and x.device.type == "cpu" else x for name, x in given.items()}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": torch.zeros(4, 1, 16)}, r"query: .*expected the shape \[B, H, N, D\]"),
        ({"key": torch.zeros(1, 2, 9, 16)}, r"key: .*expected the shape \[2, G, M, 16\]"),
        ({"value": torch.zeros(2, 2, 8, 16)}, r"value: .*expected the key's shape \(2, 2, 9, 16\)"),
        ({"cache_lengths": 9}, "cache_lengths: got 9, expected a dense torch.Tensor"),
        ({"cache_lengths": torch.tensor([4, 9])}, "cache_lengths: .*int64.*expected one of torch.int32"),
        ({"cache_lengths": torch.tensor([4], dtype=torch.int32)}, r"cache_lengths: .*expected the shape \(2,\)"),
        ({"cache_lengths": torch.zeros(2, dtype=torch.int32, device="meta")}, "cache_lengths: .*expected the device"),
        ({"num_splits": -1}, "num_splits: got -1, expected a number from 0 to 128"),
        ({"num_splits": 129}, "num_splits: got 129"),
        ({"num_splits": 2.0}, "num_splits: got 2.0"),
        ({"alibi_slopes": torch.zeros(3, 4)}, r"alibi_slopes: .*expected the shape \(4,\) or \(2, 4\)"),
    ],
)
def test_what_it_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        flash_decode(**arguments(**change))


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the values of the lengths are not read")
@pytest.mark.parametrize("lengths", [[-1, 9], [4, 10]])
def test_lengths_that_it_refuses(lengths):
    with pytest.raises(ValueError, match=r"cache_lengths: got \[.*\], expected lengths from 0 to the cache's 9"):
        flash_decode(**arguments(cache_lengths=torch.tensor(lengths, dtype=torch.int32)))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_it_is_forward_only(name):
    given = arguments()
    given[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name}: .*expected a tensor that requires no gradient.*forward only"):
        flash_decode(**given)
    with torch.no_grad():
        assert flash_decode(**given).shape == (2, 4, 1, 16)


def test_opcheck():
    q, cache = torch.randn(2, 4, 3, 16, device=DEVICE), torch.randn(2, 2, 20, 16, device=DEVICE)
    lengths = torch.tensor([20, 7], dtype=torch.int32, device=DEVICE)
    for slopes, splits in ((None, 2), (torch.rand(2, 4, device=DEVICE), 0)):
        torch.library.opcheck(torch.ops.rundoku.flash_decode.default, (q, cache, cache, lengths, slopes, 5, 0, 0.25, 2.0, splits))


def test_compiled_is_the_same():
    q, cache = torch.randn(2, 4, 1, 16, device=DEVICE), torch.randn(2, 2, 50, 16, device=DEVICE)
    lengths = torch.tensor([50, 17], dtype=torch.int32, device=DEVICE)

    def layer(q, k, v, lengths):
        return flash_decode(q * 2, k, v, lengths, causal=True, num_splits=2).tanh()

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, cache, cache, lengths), layer(q, cache, cache, lengths))
