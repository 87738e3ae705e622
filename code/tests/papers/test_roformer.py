"""Rotary positions against transformers' Llama, GPT-J and RoFormer, complex numbers, and the matrix of Eq. 15 written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rundoku.papers.roformer import decay_bound, frequencies, rotary_linear_attention, rotary_tables, rotate, to_half, to_interleaved

SEEDS = st.integers(0, 2**31)
LAYOUTS = st.sampled_from(["half", "interleaved"])
BASES = st.sampled_from([10.0, 10_000.0, 100_000.0, 500_000.0])


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def pairs(x, layout):
    """Return the pairs of ``x`` as complex numbers."""
    return torch.complex(x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else torch.complex(*x.chunk(2, -1))


@settings(deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=2), length=st.integers(1, 9), half=st.integers(1, 8), base=BASES, layout=LAYOUTS, seed=SEEDS
)
def test_values_and_gradients_are_those_of_complex_multiplication(lead, length, half, base, layout, seed):
    torch.manual_seed(seed)
    x, target = torch.randn(2, *lead, length, 2 * half)
    positions = torch.randint(0, 5_000, (length,))
    ours, theirs = leaves(x, x)
    found = rotate(ours, *rotary_tables(positions, 2 * half, base), layout)
    phases = [
        [complex(math.cos(m * base ** (-i / half)), math.sin(m * base ** (-i / half))) for i in range(half)] for m in positions.tolist()
    ]
    turned = torch.view_as_real(pairs(theirs, layout) * torch.tensor(phases))
    wanted = turned.flatten(-2) if layout == "interleaved" else torch.cat(turned.unbind(-1), -1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad((result * target).sum(), leaf)[0] for result, leaf in ((found, ours), (wanted, theirs))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (9, 3)]), half=st.integers(1, 20), base=BASES, seed=SEEDS)
def test_half_layout_is_llamas_in_transformers(batch, heads, half, base, seed):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(seed)
    n_heads, n_kv_heads = heads
    parameters = {"rope_type": "default", "rope_theta": base}
    config = llama.LlamaConfig(
        hidden_size=2 * half * n_heads,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=2 * half,
        rope_parameters=parameters,
    )
    positions = torch.randint(0, 512, (batch, 7))
    query, key = torch.randn(batch, n_heads, 7, 2 * half), torch.randn(batch, n_kv_heads, 7, 2 * half)
    ours, theirs = leaves(query, key), leaves(query, key)
    cos, sin = (table.unsqueeze(1) for table in rotary_tables(positions, 2 * half, base))  # [B, 1, N, D/2]
    found = [rotate(x, cos, sin) for x in ours]
    wanted = llama.apply_rotary_pos_emb(*theirs, *llama.LlamaRotaryEmbedding(config)(query, positions))
    # transformers takes angles in float32: below position 512 they are right to 512 · 2⁻²⁴ and some
    torch.testing.assert_close(found, list(wanted), rtol=0, atol=4e-4)
    gradients = [torch.autograd.grad(sum(x.square().sum() + x.sum() for x in made), of) for made, of in ((found, ours), (wanted, theirs))]
    torch.testing.assert_close(*gradients, rtol=0, atol=4e-3)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 4), length=st.integers(1, 12), half=st.integers(1, 16), seed=SEEDS)
def test_interleaved_layout_is_gptjs_and_roformers_in_transformers(batch, heads, length, half, seed):
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    roformer = pytest.importorskip("transformers.models.roformer.modeling_roformer")
    torch.manual_seed(seed)
    query, key = torch.randn(2, batch, heads, length, 2 * half)
    tables = rotary_tables(torch.arange(length), 2 * half)
    ours, theirs = leaves(query, key), leaves(query, key)
    found = [rotate(x, *tables, "interleaved") for x in ours]
    embedding = roformer.RoFormerSinusoidalPositionalEmbedding(length, 2 * half)
    embedding.weight.data = embedding.create_weight()
    attention = roformer.RoFormerSelfAttention
    wanted = list(attention.apply_rotary_position_embeddings(embedding((batch, length))[None, None], *theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(sum(x.sin().sum() for x in made), of) for made, of in ((found, ours), (wanted, theirs))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    sin, cos = gptj.create_sinusoidal_positions(length, 2 * half)[None].chunk(2, -1)
    by_gptj = gptj.apply_rotary_pos_emb(query.transpose(1, 2), sin, cos).transpose(1, 2)  # GPT-J: [B, N, H, D]
    torch.testing.assert_close(found[0].detach(), by_gptj, rtol=1e-5, atol=1e-5)


def matrix(position, d_head, base):
    """Return R of Eq. 15: d/2 rotations of the plane along the diagonal."""
    angles = [position * base ** (-2 * i / d_head) for i in range(d_head // 2)]
    blocks = [torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64) for a in angles]
    return torch.block_diag(*blocks)


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 100_000), other=st.integers(0, 100_000), half=st.integers(1, 8), base=BASES, seed=SEEDS)
def test_rotation_is_the_papers_matrix_which_is_orthogonal_and_relative(position, other, half, base, seed):
    torch.manual_seed(seed)
    query, key = torch.randn(2, 1, 2 * half, dtype=torch.float64)
    turned_query, turned_key = (
        rotate(x, *rotary_tables(torch.tensor([m]), 2 * half, base), "interleaved") for x, m in ((query, position), (key, other))
    )
    torch.testing.assert_close(turned_query, query @ matrix(position, 2 * half, base).T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(turned_query.norm(), query.norm(), rtol=1e-6, atol=0)
    score = query @ matrix(other - position, 2 * half, base) @ key.T  # qᵀ R_{n−m} k, Eq. 16
    torch.testing.assert_close(turned_query @ turned_key.T, score, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(n_heads=st.integers(1, 5), half=st.integers(1, 8), width=st.integers(1, 6), seed=SEEDS)
def test_both_layouts_give_the_same_scores_with_permuted_rows(n_heads, half, width, seed):
    torch.manual_seed(seed)
    d_head = 2 * half
    x = torch.randn(2, 5, width)
    tables = rotary_tables(torch.arange(5), d_head)
    weights = torch.randn(2, n_heads * d_head, width)
    biases = torch.randn(2, n_heads * d_head)

    def scores(layout, change):
        query, key = ((x @ change(w).T + change(b)).unflatten(-1, (n_heads, d_head)).transpose(1, 2) for w, b in zip(weights, biases))
        return rotate(query, *tables, layout) @ rotate(key, *tables, layout).mT

    interleaved = scores("interleaved", lambda weight: weight)
    torch.testing.assert_close(scores("half", lambda weight: to_half(weight, n_heads)), interleaved, rtol=1e-4, atol=1e-5)
    for weight in (*weights, *biases):
        assert torch.equal(to_interleaved(to_half(weight, n_heads), n_heads), weight)
        assert torch.equal(to_half(to_interleaved(weight, n_heads), n_heads), weight)


def test_to_half_undoes_what_llama_cpp_does_to_a_checkpoint():
    weight = torch.randn(4 * 6, 5)
    in_gguf = weight.reshape(4, 2, 3, 5).swapaxes(1, 2).reshape(weight.shape)  # permute() of its convert_hf_to_gguf.py
    assert torch.equal(to_half(in_gguf, 4), weight)
    assert not torch.equal(in_gguf, weight)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_backward_is_the_rotation_by_the_opposite_angle(layout):
    x, gradient = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    (x,) = leaves(x)
    cos, sin = rotary_tables(torch.arange(5), 8)
    (found,) = torch.autograd.grad(rotate(x, cos, sin, layout), x, gradient)
    torch.testing.assert_close(found, rotate(gradient, cos, -sin, layout))
    torch.testing.assert_close(rotate(rotate(x, cos, sin, layout), cos, -sin, layout), x, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin, layout), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x = torch.randn(3, 50, 64).to(dtype)
    tables = rotary_tables(torch.arange(50), 64)
    exact = rotate(x.double(), *tables)
    assert rotate(x, *tables).dtype == dtype
    assert torch.equal(rotate(x, *tables), rotate(x.float(), *tables).to(dtype))
    assert (rotate(x, *tables) - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("base", [1e4, 1e5, 5e5])
def test_tables_are_exact_at_large_positions(base):
    positions = torch.tensor([0, 1, 100_000, 1_048_575])
    cos, sin = rotary_tables(positions, 64, base)
    assert cos.dtype == sin.dtype == torch.float32
    for row, m in enumerate(positions.tolist()):
        for i in range(32):
            assert cos[row, i] == pytest.approx(math.cos(m * base ** (-i / 32)), abs=1e-7)
            assert sin[row, i] == pytest.approx(math.sin(m * base ** (-i / 32)), abs=1e-7)
    assert torch.equal(rotary_tables(positions.expand(2, 4), 64, base)[0], cos.expand(2, 4, 32))
    assert torch.equal(rotary_tables(positions.float() / 4, 64, base)[0], rotary_tables(positions.double() / 4, 64, base)[0])


def test_a_table_for_each_sequence():
    x, positions = torch.randn(3, 4, 5, 6), torch.randint(0, 99, (3, 5))
    cos, sin = rotary_tables(positions, 6)
    found = rotate(x, cos.unsqueeze(1), sin.unsqueeze(1))
    for sequence in range(3):
        assert torch.equal(found[sequence], rotate(x[sequence], cos[sequence], sin[sequence]))


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 3), length=st.integers(1, 7), half=st.integers(1, 5), layout=LAYOUTS, seed=SEEDS)
def test_linear_attention_is_equation_19_summed_term_by_term(heads, length, half, layout, seed):
    torch.manual_seed(seed)
    query, key = torch.randn(2, heads, length, 2 * half, dtype=torch.float64)
    value = torch.randn(heads, length, 3, dtype=torch.float64)
    cos, sin = rotary_tables(torch.arange(length), 2 * half)
    found = rotary_linear_attention(query, key, value, cos, sin, layout)
    phi_query, phi_key = (torch.where(x > 0, x + 1, x.exp()) for x in (query, key))
    weights = (rotate(phi_query, cos, sin, layout) @ rotate(phi_key, cos, sin, layout).mT) / (phi_query @ phi_key.mT).sum(-1, keepdim=True)
    torch.testing.assert_close(found, weights @ value)


@pytest.mark.parametrize("base", [1e4, 5e5])
def test_decay_bound_is_the_sum_of_section_3_4_3(base):
    found = decay_bound(torch.tensor([0, 1, 77, 1000]), 12, base)
    for value, distance in zip(found.tolist(), (0, 1, 77, 1000)):
        total = sum(
            abs(sum(complex(math.cos(a), math.sin(a)) for a in (distance * base ** (-i / 6) for i in range(j)))) for j in range(1, 7)
        )
        assert value == pytest.approx(total / 6)
    assert found[0] == pytest.approx(3.5)  # 1/6 · (1 + … + 6)


def test_no_score_passes_the_decay_bound():
    torch.manual_seed(0)
    query, key = torch.randn(2, 64, dtype=torch.float64)
    products = pairs(query, "half") * pairs(key, "half").conj()  # h of §3.4.3
    steps = torch.diff(products, append=torch.zeros(1)).abs().max()  # max |h_{i+1} − h_i|, with h_{d/2} = 0
    distances = torch.arange(3000)
    cos, sin = rotary_tables(distances, 64)
    scores = rotate(query.expand(3000, -1), cos, sin) @ key
    assert (scores.abs() <= steps * decay_bound(distances, 64) * 32 + 1e-5).all()


X = torch.ones(2, 3, 4, 6)  # [B, H, N, D]
COS, SIN = rotary_tables(torch.arange(4), 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frequencies(5), "d_head: got 5, expected an even number"),
        (lambda: frequencies(0), "d_head: got 0"),
        (lambda: frequencies(4, -1.0), "base: got -1.0, expected a positive"),
        (lambda: rotary_tables(torch.arange(4).bfloat16(), 6), "positions: got torch.bfloat16 of shape"),
        (lambda: rotary_tables(torch.arange(4).half(), 6), "positions: got torch.float16"),
        (lambda: rotary_tables(torch.tensor(4), 6), r"positions: got torch.int64 of shape \(\)"),
        (lambda: rotate(X, COS, SIN, "gptj"), "layout: got 'gptj', expected one of half, interleaved"),
        (lambda: rotate(X[..., :5], COS, SIN), r"x: got .*\(2, 3, 4, 5\).*D even"),
        (lambda: rotate(X.long(), COS, SIN), "x: got torch.int64"),
        (lambda: rotate(X, COS[:3], SIN[:3]), r"cos: got shape \(3, 3\), expected \(4, 3\)"),
        (lambda: rotate(X, COS, SIN[:, :2]), r"sin: got shape \(4, 2\)"),
        (lambda: rotate(X, COS.expand(3, 4, 3), SIN.expand(3, 4, 3)), r"cos: got shape \(3, 4, 3\).* or 4 axes"),
        (lambda: rotate(X[:1], COS.expand(2, 1, 4, 3), SIN.expand(2, 1, 4, 3)), r"cos: got shape \(2, 1, 4, 3\)"),
        (lambda: to_half(torch.ones(6, 2), 4), r"weight: got shape \(6, 2\), expected .* 4 heads of even width"),
        (lambda: to_interleaved(torch.ones(9), 3), r"weight: got shape \(9,\)"),
        (lambda: to_half(torch.ones(4, 2), 0), "makes 0 heads"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
