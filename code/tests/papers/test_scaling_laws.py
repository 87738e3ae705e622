"""Counts against the modules themselves and torch's counter of operations; the model against torch's own Transformer layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rundoku.papers.scaling_laws import DecoderConfig, DecoderOnly, parameters, table_1, training_flops
from rundoku.papers.scaling_laws.model import non_embedding_parameters

CONFIGS = st.builds(
    lambda vocab, context, layers, heads, width, attention, ff: DecoderConfig(vocab, context, layers, width, heads, heads * attention, ff),
    *(st.integers(1, high) for high in (30, 9, 3, 3, 12, 8, 40)),
)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@settings(deadline=None, max_examples=40)
@given(config=CONFIGS)
def test_parameters_are_those_of_the_modules(config):
    with torch.device("meta"):
        model = DecoderOnly(config)
    assert parameters(config) == non_embedding_parameters(model)
    embedding = model.tokens.weight.numel() + model.positions.weight.numel()
    assert parameters(config, embedding=True) == parameters(config) + embedding
    total = sum(parameter.numel() for parameter in model.parameters())
    small = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)  # biases and norms, which Table 1 leaves out
    assert total == parameters(config, embedding=True) + small


@settings(deadline=None, max_examples=25)
@given(config=CONFIGS, batch=st.integers(1, 3))
def test_operations_are_those_that_torch_counts(config, batch):
    model, tokens = DecoderOnly(config), torch.zeros(batch, config.n_ctx, dtype=torch.long)
    rows = table_1(config)
    matrices = sum(rows[row].flops for row in ("Attention: QKV", "Attention: Project", "Feedforward", "De-embed"))
    # Modules compute the scores above the diagonal too, and the weighted sum of values with them: twice the table's term for attention.
    forward = batch * config.n_ctx * (matrices + 2 * rows["Attention: Mask"].flops)
    assert counted(lambda: model(tokens)) == forward
    assert counted(lambda: model(tokens).sum().backward()) == 3 * forward, "the backward pass takes twice the forward pass"


def test_the_standard_shape_has_12_layers_d_squared_parameters():
    config = DecoderConfig(50_257, 1024, 48, 1600, 25)  # GPT-2, as §3.1 names it
    assert parameters(config) == 12 * 48 * 1600**2
    assert training_flops(config, 1e6) == 6 * parameters(config) * 1e6
    assert training_flops(config, 1.0, context=True) == 6 * parameters(config) + 6 * 48 * 1024 * 1600


def test_values_and_gradients_are_those_of_torchs_layers():
    torch.manual_seed(0)
    config = DecoderConfig(11, 7, 2, 12, 3)
    model, tokens = DecoderOnly(config).double(), torch.randint(11, (4, 7))
    layer = nn.TransformerEncoderLayer(12, 3, 48, 0.0, batch_first=True, norm_first=True)
    peer = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False).double()
    with torch.no_grad():
        for block, theirs in zip(model.blocks, peer.layers, strict=True):
            theirs.self_attn.in_proj_weight.copy_(
                torch.cat([block.attention.query.weight, block.attention.key.weight, block.attention.value.weight])
            )
            theirs.self_attn.in_proj_bias.zero_()
            theirs.self_attn.out_proj.bias.zero_()
            theirs.self_attn.out_proj.weight.copy_(block.attention.output.weight)
            theirs.linear1.load_state_dict(block.feed_forward.inner.state_dict())
            theirs.linear2.load_state_dict(block.feed_forward.outer.state_dict())
    embedded = (model.tokens(tokens) + model.positions.weight).detach()
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = peer(embedded, mask=mask) @ model.tokens.weight.T
    found = model(tokens)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(out.square().sum(), module.weight, retain_graph=True)[0]
             for out, module in ((found, model.blocks[0].feed_forward.inner), (expected, peer.layers[0].linear1))]  # fmt: skip
    torch.testing.assert_close(*grads)


def test_no_position_sees_a_later_one_and_shorter_contexts_agree():
    torch.manual_seed(0)
    model, tokens = DecoderOnly(DecoderConfig(11, 9, 2, 8, 2)).double(), torch.randint(11, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    moved = (model(tokens) - model(changed)).abs().amax((0, 2))
    assert moved[:5].max() == 0 and moved[5:].min() > 0
    torch.testing.assert_close(model(tokens)[:, :4], model(tokens[:, :4]))


def test_at_the_start_no_token_is_favoured_but_the_one_just_read():
    """The output projection is the embedding, so an untrained residual stream points at its own token."""
    torch.manual_seed(0)
    tokens = torch.randint(83, (16, 32))
    read, following = tokens[:, :-1], tokens[:, 1:]
    for layers, width in ((2, 12), (6, 96)):
        logits = DecoderOnly(DecoderConfig(83, 32, layers, width))(read)
        own = logits.gather(2, read[..., None])[..., 0].mean() / width**0.5
        assert 0.5 < own < 1  # the cosine between the stream and the embedding of its token
        others = logits.scatter(2, read[..., None], -torch.inf)
        changed = read != following
        loss = nn.functional.cross_entropy(others[changed], following[changed])
        assert abs(loss - torch.tensor(82.0).log()) < 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 0}, "n_layers: 0; expected 1 or more"),
        ({"d_ff": 0}, "feed_forward_width: 0"),
        ({"n_heads": 5}, "n_heads: 5 does not divide the attention's width 12"),
        ({"n_heads": 5, "d_attn": 11}, "width 11"),
    ],
)
def test_sizes_that_make_no_model_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{"vocab_size": 11, "n_ctx": 4, "n_layers": 2, "d_model": 12, **change})


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="tokens: 5 in a row; expected at most n_ctx = 4"):
        DecoderOnly(DecoderConfig(11, 4, 1, 8))(torch.zeros(1, 5, dtype=torch.long))


def test_a_run_measures_the_loss_at_as_many_steps_as_asked():
    from rundoku.papers.scaling_laws.experiments import run

    sizes = {"layers": 1, "width": 8, "rate": 0.01, "steps": 8}
    once, often = run.__wrapped__(**sizes, points=1), run.__wrapped__(**sizes, points=3)
    assert once["at"] == [8] and often["at"] == [4, 6, 8]
    assert once["loss"] == often["loss"][-1:]  # measuring changes nothing of the training
