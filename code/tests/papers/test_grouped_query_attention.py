"""Grouped-query attention against torch's, transformers', FlashAttention's kernel and the two attentions at its ends."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rundoku.papers.attention_is_all_you_need import (
    Encoder,
    MultiHeadAttention,
    TransformerConfig,
    causal_mask,
    scaled_dot_product_attention,
)
from rundoku.papers.flash_attention.kernel import flash_attention
from rundoku.papers.grouped_query_attention import (
    GroupedQueryAttention,
    convert,
    convert_all,
    first_heads,
    grouped_attention,
    kv_cache_bytes,
    mean_pool_heads,
)

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad((output * draw(*output.shape, seed=99)).sum(), inputs, retain_graph=True))


def copied(attention: GroupedQueryAttention) -> MultiHeadAttention:
    """Return the multi-head attention that keeps a copy of its group's key and value for every query head."""
    repeats = attention.n_heads // attention.n_kv_heads
    full = MultiHeadAttention(attention.query.in_features, attention.n_heads, attention.d_head, attention.d_head).double()
    full.query, full.output = attention.query, attention.output
    with torch.no_grad():
        for name in ("key", "value"):
            heads = getattr(attention, name).weight.unflatten(0, (attention.n_kv_heads, -1))
            getattr(full, name).weight.copy_(heads.repeat_interleave(repeats, dim=0).flatten(0, 1))
    return full


MASKS = ("none", "causal", "padding", "rows", "per head", "float", "float per head")


def make_mask(kind: str, batch: int, heads: int, n: int, m: int) -> torch.Tensor | None:
    """Return a mask of any of the shapes that broadcast to [B, H, N, M]; some rows may have nothing to attend to."""
    allowed = draw(batch, heads, n, m, seed=4) > -0.5
    return {
        "none": None,
        "causal": torch.ones(n, m, dtype=torch.bool).tril(m - n),
        "padding": allowed[:, :1, :1],
        "rows": allowed[:, :1, :, :1],
        "per head": allowed,
        "float": torch.where(allowed[0, 0], draw(n, m, seed=5), -math.inf),
        "float per head": draw(heads, 1, m, seed=6),
    }[kind]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), groups=st.integers(1, 3), repeats=st.integers(1, 4), n=st.integers(1, 7), m=st.integers(1, 9),
    width=st.integers(1, 8), value_width=st.integers(1, 8), mask=st.sampled_from(MASKS), scale=st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_values_and_gradients_are_those_of_torchs_enable_gqa(batch, groups, repeats, n, m, width, value_width, mask, scale):
    heads = groups * repeats
    inputs = [draw(batch, heads, n, width, seed=1), draw(batch, groups, m, width, seed=2), draw(batch, groups, m, value_width, seed=3)]
    for x in inputs:
        x.requires_grad_()
    attn_mask = make_mask(mask, batch, heads, n, m)
    ours = grouped_attention(*inputs, attn_mask=attn_mask, scale=scale)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        theirs = F.scaled_dot_product_attention(*inputs, attn_mask=attn_mask, scale=scale, enable_gqa=True)
        their_gradients = gradients(theirs, inputs)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, inputs), their_gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_each_query_head_reads_the_head_of_its_group():
    key, value = draw(1, 2, 5, 4, seed=2), draw(1, 2, 5, 4, seed=3)
    query = draw(1, 6, 3, 4, seed=1)
    out = grouped_attention(query, key, value)
    for h in range(6):
        torch.testing.assert_close(out[:, h], scaled_dot_product_attention(query[:, h], key[:, h // 3], value[:, h // 3]))


def test_multi_query_attention_is_shazeers():
    """One key-value head against §2.4 of Shazeer (2019), written with the einsums of that paper, whose scores are not scaled."""
    query, key, value = draw(2, 4, 3, 5, seed=1), draw(2, 7, 5, seed=2), draw(2, 7, 6, seed=3)
    logits = torch.einsum("bhnk,bmk->bhnm", query, key)
    expected = torch.einsum("bhnm,bmv->bhnv", logits.softmax(-1), value)
    torch.testing.assert_close(grouped_attention(query, key[:, None], value[:, None], scale=1.0), expected)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 3, 6])
def test_a_group_that_shares_is_a_multi_head_attention_with_copies(n_kv_heads):
    torch.manual_seed(0)
    ours = GroupedQueryAttention(12, 6, n_kv_heads).double()
    full = copied(ours)
    x, y = draw(2, 5, 12, seed=1), draw(2, 7, 12, seed=2)
    allowed = draw(2, 1, 5, 7, seed=3) > -0.5
    mine, theirs = ours(x, y, y, allowed), full(x, y, y, allowed)
    torch.testing.assert_close(mine, theirs)
    shared, separate = gradients(mine, [ours.key.weight, ours.value.weight]), gradients(theirs, [full.key.weight, full.value.weight])
    for a, b in zip(shared, separate, strict=True):  # what the copies learn apart, the shared head learns in sum
        torch.testing.assert_close(a, b.unflatten(0, (n_kv_heads, 6 // n_kv_heads, -1)).sum(1).flatten(0, 1))


def test_a_decoded_token_is_the_last_row_of_the_whole():
    torch.manual_seed(0)
    attention = GroupedQueryAttention(24, 6, 2).double()
    x = draw(3, 9, 24)
    whole = attention(x, x, x, causal_mask(9))
    torch.testing.assert_close(attention(x[:, -1:], x, x), whole[:, -1:])


def test_the_future_stays_hidden_from_every_head():
    """The folded mask must belong to its own query: changing what is masked changes nothing, changing what is allowed does."""
    query, key, value = draw(1, 6, 5, 4, seed=1), draw(1, 2, 5, 4, seed=2), draw(1, 2, 5, 4, seed=3)
    before = grouped_attention(query, key, value, causal_mask(5))
    for at in range(5):
        changed = value.clone()
        changed[:, :, at] += 10.0
        moved = (grouped_attention(query, key, changed, causal_mask(5)) - before).abs().amax(dim=(0, 1, 3))  # [N]
        assert (moved[:at] == 0).all() and (moved[at:] > 0).all()


def test_empty_rows_give_zeros_and_finite_gradients():
    inputs = [draw(2, heads, 5, 4, seed=heads).requires_grad_() for heads in (6, 2, 3)]
    inputs[2] = draw(2, 2, 5, 4, seed=7).requires_grad_()
    allowed = causal_mask(5)
    allowed[2] = False
    out = grouped_attention(*inputs, allowed)
    assert (out[:, :, 2] == 0).all() and (out[:, :, 3] != 0).all()
    assert all(grad.isfinite().all() for grad in gradients(out, inputs))


def test_gradcheck():
    inputs = [draw(1, 4, 2, 3, seed=1), draw(1, 2, 3, 3, seed=2), draw(1, 2, 3, 2, seed=3)]
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.autograd.gradcheck(lambda q, k, v: grouped_attention(q, k, v, allowed), [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_any_leading_axes(leading):
    query, key, value = draw(*leading, 4, 3, 5, seed=1), draw(*leading, 2, 7, 5, seed=2), draw(*leading, 2, 7, 5, seed=3)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(grouped_attention(query, key, value), expected)


def test_transformers_llama_attention_computes_the_same():
    """Copied weights, positions that turn nothing, its eager path that repeats keys and values; values and all gradients.

    Its softmax is float32 whatever the input, hence the tolerance.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=8, attn_implementation="eager")
    theirs = LlamaAttention(config, layer_idx=0).double().eval()
    ours = GroupedQueryAttention(48, 6, 2, 8).double()
    pairs = list(zip((ours.query, ours.key, ours.value, ours.output), (theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj)))
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    x = draw(2, 7, 48).requires_grad_()
    unturned = torch.ones(2, 7, 8, dtype=F64), torch.zeros(2, 7, 8, dtype=F64)  # cos, sin
    added = torch.zeros(7, 7, dtype=F64).masked_fill(~causal_mask(7), -math.inf)[None, None]
    expected, out = theirs(x, position_embeddings=unturned, attention_mask=added)[0], ours(x, x, x, causal_mask(7))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    mine = gradients(out, [x, *(pair[0].weight for pair in pairs)])
    for a, b in zip(mine, gradients(expected, [x, *(pair[1].weight for pair in pairs)]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_flash_attentions_kernel_reads_the_same_heads():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 19, 16, requires_grad=True) for heads in (6, 2, 2))
    ours, fused = grouped_attention(query, key, value, causal_mask(19)), flash_attention(query, key, value, causal=True)
    torch.testing.assert_close(ours, fused, rtol=1e-5, atol=1e-5)
    target = torch.randn_like(ours)
    grads = [torch.autograd.grad((out * target).sum(), (query, key, value)) for out in (ours, fused)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mean_pooling_by_hand():
    weight = torch.arange(8.0)[:, None].expand(8, 3)  # four heads of width 2: rows (0, 1), (2, 3), (4, 5), (6, 7)
    assert mean_pool_heads(weight, 4, 2)[:, 0].tolist() == [1, 2, 5, 6]
    assert mean_pool_heads(weight, 4, 1)[:, 0].tolist() == [3, 4]
    assert first_heads(weight, 4, 2)[:, 0].tolist() == [0, 1, 4, 5]
    assert torch.equal(mean_pool_heads(weight, 4, 4), weight)
    assert mean_pool_heads(weight[:, 0], 4, 2).tolist() == [1, 2, 5, 6]  # a bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["mean", "first"])
def test_converting_to_as_many_heads_changes_nothing(method, bias):
    torch.manual_seed(0)
    old = MultiHeadAttention(12, 4, d_k=5, d_v=5, bias=bias).double()
    new = convert(old, 4, method)
    x = draw(2, 6, 12)
    torch.testing.assert_close(new(x, x, x, causal_mask(6)), old(x, x, x, causal_mask(6)))


@pytest.mark.parametrize("method", ["mean", "first"])
def test_heads_that_are_alike_are_converted_without_loss(method):
    torch.manual_seed(0)
    shared = GroupedQueryAttention(12, 6, 2).double()
    again = convert(copied(shared), 2, method)
    for name, parameter in shared.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter)


def test_random_conversion_keeps_queries_and_output_only():
    torch.manual_seed(0)
    old = MultiHeadAttention(12, 4)
    new = convert(old, 2, "random")
    assert torch.equal(new.query.weight, old.query.weight) and torch.equal(new.output.weight, old.output.weight)
    assert new.key.weight.shape == (6, 12) and not any(
        torch.equal(new.key.weight, f(old.key.weight, 4, 2)) for f in (mean_pool_heads, first_heads)
    )
    assert new.query.weight.data_ptr() != old.query.weight.data_ptr()


def test_a_whole_model_is_converted():
    torch.manual_seed(0)
    model = Encoder(TransformerConfig(d_model=12, d_ff=8, n_heads=4, n_layers=2, dropout=0.0)).eval()
    before = model(draw(1, 3, 12).float())
    assert convert_all(model, 4) is model
    kinds = [type(layer.self_attention) for layer in model.layers]
    assert kinds == [GroupedQueryAttention] * 2 and not model.layers[0].self_attention.training
    torch.testing.assert_close(model(draw(1, 3, 12).float()), before)


def test_the_cache_is_as_large_as_the_tensors_it_keeps():
    attention = GroupedQueryAttention(48, 6, 2)
    x = torch.zeros(3, 10, 48, dtype=torch.bfloat16)
    k, v = (attention.split(part.bfloat16()(x)) for part in (attention.key, attention.value))
    assert kv_cache_bytes(5, 2, 8, 10, batch=3) == 5 * (k.nbytes + v.nbytes)


def test_the_cache_of_a_published_model_and_its_copies_on_ranks():
    """LLaMA-2-70B at 4,096 tokens: 1.25 GiB; with 64 heads ten GiB. Two ranks split the heads, 16 keep every head twice."""
    one = kv_cache_bytes(80, 8, 128, 4096)
    assert one == 1.25 * 2**30 and kv_cache_bytes(80, 64, 128, 4096) == 10 * 2**30
    assert kv_cache_bytes(80, 8, 128, 4096, ranks=2) == one and kv_cache_bytes(80, 8, 128, 4096, ranks=16) == 2 * one
    assert kv_cache_bytes(80, 1, 128, 4096, ranks=8) == one  # a single head on eight ranks costs as much as eight heads


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: grouped_attention(draw(4, 2, 3), draw(3, 2, 3), draw(3, 2, 3)),
            "key: it has 3 heads; expected a divisor of the query's 4",
        ),
        (lambda: grouped_attention(draw(4, 2, 3), draw(0, 2, 3), draw(0, 2, 3)), "key: it has 0 heads"),
        (lambda: grouped_attention(draw(4, 2, 3), draw(2, 2, 3), draw(4, 2, 3)), "value: it has 4 heads; expected the key's 2"),
        (lambda: grouped_attention(draw(2, 3), draw(2, 3), draw(2, 3)), r"query: its shape is \(2, 3\)"),
        (lambda: grouped_attention(draw(2, 4, 2, 3), draw(1, 2, 2, 3), draw(1, 2, 2, 3)), r"key: its leading axes are \(1,\)"),
        (lambda: grouped_attention(draw(4, 2, 3), draw(2, 5, 3), draw(2, 5, 3), torch.ones(2, 4).bool()), "attn_mask: its last axes"),
        (lambda: grouped_attention(draw(4, 2, 3), draw(2, 5, 3), draw(2, 5, 3), torch.ones(2, 2, 5).bool()), "attn_mask: its last axes"),
        (lambda: GroupedQueryAttention(12, 6, 4), "n_kv_heads: 4; expected a divisor of n_heads = 6"),
        (lambda: GroupedQueryAttention(10, 4, 2), "n_heads: 4 does not divide d_model = 10"),
        (lambda: mean_pool_heads(draw(10, 3), 4, 2), "weight: it has 10 rows"),
        (lambda: first_heads(draw(8, 3), 4, 3), "n_kv_heads: 3"),
        (lambda: convert(MultiHeadAttention(8, 2), 1, "median"), "method: 'median'"),
        (lambda: convert(MultiHeadAttention(8, 2, d_k=3, d_v=4), 1), r"attention: its key and value heads are \(3, 4\) wide"),
        (lambda: kv_cache_bytes(1, 8, 1, 1, ranks=3), "ranks: 3; expected a divisor or a multiple of n_kv_heads = 8"),
        (lambda: kv_cache_bytes(1, 8, 1, -1), "length: -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
