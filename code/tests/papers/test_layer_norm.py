"""Layer normalisation against torch.nn.LayerNorm, and the paper's LSTM and GRU against torch's and against the equations written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rundoku.papers.layer_norm import GRU, LSTM, LayerNorm, RecurrentConfig, layer_norm

SEEDS = st.integers(0, 2**31)


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), eps=st.sampled_from([1e-12, 1e-5, 0.1]), bias=st.booleans(), seed=SEEDS)
def test_values_and_all_gradients_are_those_of_torch(shape, eps, bias, seed):
    torch.manual_seed(seed)
    x, target = torch.randn(2, *shape, dtype=torch.float64) * 3 + 1
    ours = LayerNorm(shape[-1], eps, bias).double()
    theirs = nn.LayerNorm(shape[-1], eps, bias=bias, dtype=torch.float64)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module in (ours, theirs):
        (own,) = leaves(x)
        result = module(own)
        (result - target).square().sum().backward()
        results.append([result, own.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_as_exact_as_torchs(dtype):
    torch.manual_seed(0)
    x, weight, bias = (300 * torch.randn(40, 96)).to(dtype), torch.randn(96).to(dtype), torch.randn(96).to(dtype)  # x² overflows float16
    exact = F.layer_norm(x.double(), (96,), weight.double(), bias.double())
    ours, theirs = layer_norm(x, weight, bias), F.layer_norm(x, (96,), weight, bias)
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()


def test_without_gain_and_bias_each_row_has_mean_0_and_variance_1():
    normal = layer_norm(torch.randn(5, 7, 64, dtype=torch.float64) * 4 - 9, eps=1e-12)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(5, 7, dtype=torch.float64))
    torch.testing.assert_close(normal.var(-1, correction=0), torch.ones(5, 7, dtype=torch.float64))


def test_a_constant_row_gives_the_bias_and_finite_gradients():
    (x,) = leaves(torch.full((2, 8), 5.0))
    result = layer_norm(x, torch.full((8,), 3.0), torch.full((8,), 0.5))
    result.square().sum().backward()
    assert torch.equal(result, torch.full((2, 8), 0.5))
    assert x.grad.isfinite().all()


def test_gradcheck():
    x, weight, bias = leaves(*(torch.randn(shape, dtype=torch.float64) for shape in [(3, 6), (6,), (6,)]))
    assert torch.autograd.gradcheck(layer_norm, (x, weight, bias))
    assert torch.autograd.gradgradcheck(layer_norm, (x, weight, bias))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4)), r"weight: got shape \(4,\), expected \(3,\)"),
        ((torch.ones(2, 3), None, torch.ones(1)), r"bias: got shape \(1,\), expected \(3,\)"),
        ((torch.ones(2, 3, dtype=torch.int64),), "x: got torch.int64"),
        ((torch.tensor(1.0),), r"x: got .* of shape \(\)"),
        ((torch.ones(2, 0),), "with C at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_norm(*arguments)
    with pytest.raises(ValueError, match="d_model: got 0"):
        LayerNorm(0)


def torch_lstm(ours):
    """Return torch's LSTM with the weights of ours: torch orders the gates (i, f, g, o), the paper (f, i, o, g)."""
    theirs = nn.LSTM(ours.config.d_input, ours.config.d_model, batch_first=True)
    forget, write, read, new = range(4)
    order = [write, forget, new, read]

    def reorder(weight):
        return torch.cat([weight.chunk(4)[gate] for gate in order])

    state = {"weight_ih_l0": ours.input.weight, "weight_hh_l0": ours.hidden.weight, "bias_ih_l0": ours.bias, "bias_hh_l0": 0 * ours.bias}
    theirs.load_state_dict({name: reorder(tensor) for name, tensor in state.items()})
    return theirs


def torch_gru(ours):
    """Return torch's GRU with the weights of ours: torch orders (r, z, n) and keeps the old state where z is 1, the paper where it is 0."""
    theirs = nn.GRU(ours.config.d_input, ours.config.d_model, batch_first=True)

    def reorder(weight):
        update, reset, new = weight.chunk(3)
        return torch.cat([reset, -update, new])

    state = {"weight_ih_l0": ours.input.weight, "weight_hh_l0": ours.hidden.weight, "bias_ih_l0": ours.bias, "bias_hh_l0": 0 * ours.bias}
    theirs.load_state_dict({name: reorder(tensor) for name, tensor in state.items()})
    return theirs


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 6), d_input=st.integers(1, 5), d_model=st.integers(1, 7), seed=SEEDS)
@pytest.mark.parametrize(("kind", "independent"), [(LSTM, torch_lstm), (GRU, torch_gru)])
def test_without_normalisation_the_cells_are_torchs(kind, independent, batch, length, d_input, d_model, seed):
    torch.manual_seed(seed)
    ours = kind(RecurrentConfig(d_input, d_model, norm=False))
    nn.init.normal_(ours.bias)
    theirs = independent(ours)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(seed)
        (x,) = leaves(torch.randn(batch, length, d_input))
        outputs, last = module(x)
        last = torch.cat([state.reshape(batch, d_model) for state in (last if isinstance(last, tuple) else (last,))])
        (outputs.square().sum() + last.sum()).backward()
        results.append([outputs, last, x.grad])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def written_out(model, x):
    """Return the hidden states by Eq. 20–22 or 26–28, one case and one step at a time, normalised by torch."""

    def normal(module, vector):
        return F.layer_norm(vector, vector.shape, module.weight, module.bias, module.eps)

    width, outputs = model.config.d_model, []
    for case in x:
        hidden, cell, states = x.new_zeros(width), x.new_zeros(width), []
        for step in case:
            below, beside = model.input.weight @ step, model.hidden.weight @ hidden
            if isinstance(model, LSTM):
                summed = normal(model.norm_hidden, beside) + normal(model.norm_input, below) + model.bias
                f, i, o, g = summed.split(width)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * normal(model.norm_cell, cell).tanh()
            else:
                below = below + model.bias
                gates = normal(model.norm_gates_hidden, beside[: 2 * width]) + normal(model.norm_gates_input, below[: 2 * width])
                z, r = gates.split(width)
                reset = r.sigmoid() * normal(model.norm_hidden, beside[2 * width :])
                candidate = (normal(model.norm_input, below[2 * width :]) + reset).tanh()
                hidden = (1 - z.sigmoid()) * hidden + z.sigmoid() * candidate
            states.append(hidden)
        outputs.append(torch.stack(states))
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_with_normalisation_the_cells_are_the_papers_equations(kind):
    torch.manual_seed(1)
    model = kind(RecurrentConfig(3, 5)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    found, wanted = model(x)[0], written_out(model, x)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(result.sin().sum(), list(model.parameters())) for result in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])  # no parameter is left out


@pytest.mark.parametrize("kind", [LSTM, GRU])
@pytest.mark.parametrize("norm", [True, False])
def test_a_sequence_in_two_halves_is_the_sequence(kind, norm):
    torch.manual_seed(2)
    model, x = kind(RecurrentConfig(3, 4, norm)), torch.randn(2, 7, 3)
    whole, last = model(x)
    first, state = model(x[:, :3])
    second, end = model(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_one_case_does_not_depend_on_its_batch(kind):
    torch.manual_seed(3)
    model, x = kind(RecurrentConfig(3, 4)), torch.randn(5, 6, 3)
    torch.testing.assert_close(model(x)[0][:1], model(x[:1])[0])


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 4), (2, 0, 3)])
def test_a_wrong_input_to_a_cell_is_named(shape):
    for kind in (LSTM, GRU):
        with pytest.raises(ValueError, match=r"x: got shape .*, expected \[B, N, 3\] with N at least 1"):
            kind(RecurrentConfig(3, 4))(torch.ones(shape))
