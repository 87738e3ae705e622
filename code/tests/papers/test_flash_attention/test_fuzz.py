"""The three forms against the float64 reference on inputs that hypothesis draws: shapes, lengths, strides, dtypes and every option."""

import itertools

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rundoku.gpu.launch import INTERPRETED
from rundoku.papers.flash_attention import attention_reference, flash_attention, flash_attention_varlen, flash_decode

DEVICE = "cpu" if INTERPRETED else "cuda"
LAYOUTS = ("contiguous", "second axis last", "every other", "fused")

options = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window_size": st.one_of(st.just((-1, -1)), st.tuples(st.integers(-1, 40), st.integers(-1, 40))),
        "softmax_scale": st.sampled_from([None, 0.5, -0.2]),
        "softcap": st.sampled_from([0.0, 0.0, 2.0]),
    }
)
case = {
    "heads": st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (6, 1)]),
    "width": st.sampled_from([16, 16, 32]),
    "dtype": st.sampled_from([torch.float16, torch.float32]),
    "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    "slopes": st.sampled_from([None, "head", "batch"]),
    "flags": options,
    "seed": st.integers(0, 2**16),
}
# Nothing is shrunk, which would take minutes: the drawn case is small.
drawn = settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
lengths = st.integers(0, 45)


def laid_out(layout: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers of this shape with the strides that the layout's name says."""
    wide = {
        "contiguous": shape,
        "second axis last": (shape[0], *shape[2:], shape[1]),
        "every other": (*shape[:-2], 2 * shape[-2], shape[-1]),
        "fused": (*shape[:-1], 3 * shape[-1]),
    }[layout]
    tensor = torch.randn(wide, dtype=torch.float64, generator=generator).to(DEVICE, dtype)
    if layout == "second axis last":
        return tensor.movedim(-1, 1)
    if layout == "every other":
        return tensor[..., ::2, :]
    return tensor[..., shape[-1] : 2 * shape[-1]] if layout == "fused" else tensor


def slopes_of(name: str | None, batch: int, heads: int, generator: torch.Generator) -> torch.Tensor | None:
    shapes = {None: None, "head": (heads,), "batch": (batch, heads)}
    return None if name is None else torch.rand(shapes[name], generator=generator).to(DEVICE)


def reference(slopes, flags, parts, upcast):
    """Return a call that gives the reference's (out, lse) of every sequence: the outs and the lses. `parts` cuts the tensors into them."""

    def call(query, key, value):
        found = []
        for b, *one in parts(query, key, value):
            own = (
                None if slopes is None else (slopes if slopes.ndim == 1 else slopes[b : b + 1]).to(query.dtype if upcast else slopes.dtype)
            )
            found.append(attention_reference(*one, own, upcast=upcast, **flags))
        return zip(*found, strict=True)

    return call


@drawn
@given(batch=st.integers(1, 2), queries=lengths, keys=lengths, **case)
def test_fixed(hold, batch, queries, keys, heads, width, dtype, layouts, slopes, flags, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, h, n, width) for h, n in ((heads[0], queries), (heads[1], keys), (heads[1], keys))]
    tensors = [laid_out(layout, shape, dtype, generator) for layout, shape in zip(layouts, shapes, strict=True)]
    slope = slopes_of(slopes, batch, heads[0], generator)
    grads = torch.randn(shapes[0], generator=generator).to(DEVICE), torch.randn(shapes[0][:3], generator=generator).to(DEVICE)

    def plain(upcast):
        def call(*inputs):
            own = None if slope is None else slope.to(inputs[0].dtype if upcast else slope.dtype)
            return attention_reference(*inputs, own, upcast=upcast, **flags)

        return call

    hold(tensors, grads, lambda q, k, v: flash_attention(q, k, v, slope, return_lse=True, **flags), plain(False), plain(True))


@drawn
@given(sequences=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4), **case)
def test_packed(hold, sequences, heads, width, dtype, layouts, slopes, flags, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = ([pair[i] for pair in sequences] for i in (0, 1))
    shapes = [(sum(n), h, width) for h, n in ((heads[0], queries), (heads[1], keys), (heads[1], keys))]
    tensors = [laid_out(layout, shape, dtype, generator) for layout, shape in zip(layouts, shapes, strict=True)]
    slope = slopes_of(slopes, len(sequences), heads[0], generator)
    grads = torch.randn(shapes[0], generator=generator).to(DEVICE), torch.randn(heads[0], sum(queries), generator=generator).to(DEVICE)
    starts = [torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32, device=DEVICE) for n in (queries, keys)]

    def parts(query, key, value):
        cut = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
        return ((b, *(x.transpose(0, 1)[None] for x in one)) for b, one in enumerate(cut))

    def plain(upcast):
        def call(*inputs):
            outs, lses = reference(slope, flags, parts, upcast)(*inputs)
            return torch.cat([out[0].transpose(0, 1) for out in outs]), torch.cat([lse[0] for lse in lses], 1)

        return call

    def ours(q, k, v):
        return flash_attention_varlen(q, k, v, *starts, max(queries), max(keys), slope, return_lse=True, **flags)

    hold(tensors, grads, ours, plain(False), plain(True))


@drawn
@given(filled=st.lists(st.integers(0, 150), min_size=1, max_size=3), queries=st.integers(1, 16), splits=st.integers(0, 9), **case)
def test_decode(hold, filled, queries, splits, heads, width, dtype, layouts, slopes, flags, seed):
    generator, batch = torch.Generator().manual_seed(seed), len(filled)
    shapes = [(batch, h, n, width) for h, n in ((heads[0], queries), (heads[1], 150), (heads[1], 150))]
    tensors = [laid_out(layout, shape, dtype, generator) for layout, shape in zip(layouts, shapes, strict=True)]
    for b, length in enumerate(filled):
        for cache in tensors[1:]:
            cache[b, :, length:] = float("nan")
    slope = slopes_of(slopes, batch, heads[0], generator)
    held = torch.tensor(filled, dtype=torch.int32, device=DEVICE)

    def parts(query, key, value):
        return ((b, query[b : b + 1], key[b : b + 1, :, :n], value[b : b + 1, :, :n]) for b, n in enumerate(filled))

    def plain(upcast):
        return lambda *inputs: tuple(map(torch.cat, reference(slope, flags, parts, upcast)(*inputs)))

    def ours(q, k, v):
        return flash_decode(q, k, v, held, slope, num_splits=splits, return_lse=True, **flags)

    hold(tensors, None, ours, plain(False), plain(True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_what_its_name_says(layout):
    tensor = laid_out(layout, (2, 3, 4, 16), torch.float32, torch.Generator().manual_seed(0))
    assert tensor.shape == (2, 3, 4, 16) and tensor.is_contiguous() == (layout == "contiguous")
