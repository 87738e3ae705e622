"""The Transformer against torch's encoder, decoder and nn.Transformer with copied weights; positions, loss, recipe, sizes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rundoku.papers.attention_is_all_you_need import (
    BASE,
    BIG,
    Decoder,
    Encoder,
    Transformer,
    TransformerConfig,
    average_checkpoints,
    causal_mask,
    label_smoothed_cross_entropy,
    learning_rate,
    paper_optimizer,
    sinusoidal_positions,
)

F64 = torch.float64
TINY = TransformerConfig(vocab_size=13, n_layers=2, d_model=12, d_ff=20, n_heads=3, dropout=0.0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tokens(*shape: int, seed: int = 0, low: int = 3) -> torch.Tensor:
    return torch.randint(low, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    """Give `theirs` the weights of `ours`; torch's attention has biases that the paper's has not: they become zero."""
    attentions = [(ours.self_attention, theirs.self_attn)]
    if hasattr(ours, "cross_attention"):
        attentions.append((ours.cross_attention, theirs.multihead_attn))
    with torch.no_grad():
        for mine, other in attentions:
            other.in_proj_weight.copy_(torch.cat((mine.query.weight, mine.key.weight, mine.value.weight)))
            other.in_proj_bias.zero_()
            other.out_proj.weight.copy_(mine.output.weight)
            other.out_proj.bias.zero_()
        for mine, other in ((ours.feed_forward.inner, theirs.linear1), (ours.feed_forward.outer, theirs.linear2)):
            other.load_state_dict(mine.state_dict())
        for i, residual in enumerate(ours.residuals):
            norm = getattr(theirs, f"norm{i + 1}")
            nn.init.normal_(residual.norm.weight)  # as 1 and 0 they would hide a mix-up
            nn.init.normal_(residual.norm.bias)
            norm.weight.copy_(residual.norm.weight)
            norm.bias.copy_(residual.norm.bias)


def their_layer(kind: type, config: TransformerConfig) -> nn.Module:
    return kind(config.d_model, config.n_heads, config.d_ff, config.dropout, "relu", batch_first=True, dtype=F64)


def stacks(config: TransformerConfig) -> tuple[Encoder, Decoder, nn.Transformer]:
    """Return our two stacks and an nn.Transformer that holds the same weights and, like the paper, no final normalization."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(config).double(), Decoder(config).double()
    their_encoder = nn.TransformerEncoder(
        their_layer(nn.TransformerEncoderLayer, config), config.n_layers, norm=None, enable_nested_tensor=False
    )
    their_decoder = nn.TransformerDecoder(their_layer(nn.TransformerDecoderLayer, config), config.n_layers, norm=None)
    transformer = nn.Transformer(
        config.d_model, config.n_heads, custom_encoder=their_encoder, custom_decoder=their_decoder, batch_first=True
    )
    for ours, theirs in zip([*encoder.layers, *decoder.layers], [*their_encoder.layers, *their_decoder.layers]):
        copy_layer(ours, theirs)  # only now: nn.Transformer draws all weights anew
    return encoder, decoder, transformer


@settings(max_examples=15, deadline=None)
@given(
    n_layers=st.integers(1, 3), n_heads=st.integers(1, 3), width=st.integers(1, 4), d_ff=st.integers(1, 9),
    n=st.integers(1, 6), m=st.integers(1, 6), padded=st.booleans(),
)  # fmt: skip
def test_stacks_are_nn_transformers(n_layers, n_heads, width, d_ff, n, m, padded):
    config = TransformerConfig(n_layers=n_layers, d_model=n_heads * width, d_ff=d_ff, n_heads=n_heads, dropout=0.0)
    encoder, decoder, theirs = stacks(config)
    source = draw(2, m, config.d_model, seed=1).requires_grad_()
    target = draw(2, n, config.d_model, seed=2).requires_grad_()
    padding = torch.zeros(2, m, dtype=torch.bool)
    if padded:
        padding[1, max(1, m - 2) :] = True  # torch: True = padding
    mask = ~padding[:, None, None, :]
    ours = decoder(target, encoder(source, mask), mask)
    their = theirs(
        source, target, tgt_mask=~causal_mask(n), src_key_padding_mask=padding, memory_key_padding_mask=padding, tgt_is_causal=False
    )  # fmt: skip
    torch.testing.assert_close(ours, their)
    mine = [source, target, *(layer.feed_forward.inner.weight for layer in [*encoder.layers, *decoder.layers])]
    other = [source, target, *(layer.linear1.weight for layer in [*theirs.encoder.layers, *theirs.decoder.layers])]
    cotangent = draw(*ours.shape, seed=3)
    for a, b in zip(torch.autograd.grad(ours, mine, cotangent), torch.autograd.grad(their, other, cotangent)):
        torch.testing.assert_close(a, b)


def test_dropout_stands_where_the_paper_puts_it():
    torch.manual_seed(0)
    model = Transformer(replace(TINY, dropout=1.0 - 1e-9))  # drops everything that dropout sees
    x = draw(1, 4, TINY.d_model).float()
    layer = model.encoder.layers[0]
    expected = layer.residuals[1].norm(layer.residuals[0].norm(x))  # every sub-layer's output is gone, the residual path is not
    torch.testing.assert_close(layer(x), expected)
    assert (model.embed(tokens(1, 4)) == 0).all()


def test_the_model_is_its_parts():
    model = Transformer(TINY).double().eval()
    source, target = tokens(2, 5), tokens(2, 4, seed=1)
    weight = model.embedding.weight
    positions = sinusoidal_positions(5, TINY.d_model).double()
    memory = model.encoder(weight[source] * math.sqrt(TINY.d_model) + positions)
    hidden = model.decoder(weight[target] * math.sqrt(TINY.d_model) + positions[:4], memory)
    torch.testing.assert_close(model(source, target), hidden @ weight.T)


def test_embedding_is_shared_by_source_target_and_output():
    model = Transformer(TINY)
    assert [name for name, p in model.named_parameters() if TINY.vocab_size in p.shape] == ["embedding.weight"]


def test_no_position_sees_a_later_one():
    model = Transformer(TINY).double().eval()
    source, target = tokens(1, 5), tokens(1, 6, seed=1)
    changed = target.clone()
    changed[0, 3] = 3 + (changed[0, 3] - 3 + 1) % 10
    before, after = model(source, target), model(source, changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=0)
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()


def test_padding_changes_nothing():
    model = Transformer(TINY).double().eval()
    source, target = tokens(1, 5), tokens(1, 4, seed=1)
    padded_source, padded_target = F.pad(source, (0, 3), value=TINY.pad), F.pad(target, (0, 2), value=TINY.pad)
    torch.testing.assert_close(model(source, target), model(padded_source, padded_target)[:, :4])


def test_a_source_of_padding_alone_gives_no_nan():
    model = Transformer(TINY)
    loss = model(torch.zeros(2, 3, dtype=torch.long), tokens(2, 4)).square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_positions_are_the_formulas():
    positions = sinusoidal_positions(200, 16)
    for position in (0, 1, 7, 199):
        for i in range(8):
            angle = position / 10_000 ** (2 * i / 16)
            assert positions[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert positions[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_far_positions_keep_their_precision():
    far = 1_000_000
    assert sinusoidal_positions(far + 1, 2)[far, 0] == pytest.approx(math.sin(far), abs=1e-7)


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="d_model: 7 is odd"):
        sinusoidal_positions(3, 7)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 6), st.floats(0, 1), st.booleans())
def test_smoothed_loss_is_torchs(vocabulary, n, smoothing, ignore):
    logits = draw(3, n, vocabulary, seed=1).requires_grad_()
    target = torch.randint(0, vocabulary, (3, n), generator=torch.Generator().manual_seed(n))
    target[0, 0] = 1
    ours = label_smoothed_cross_entropy(logits, target, smoothing, 0 if ignore else None)
    theirs = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0 if ignore else -100, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_tensor2tensors_smoothing_is_ours_at_another_value():
    """There, ε is shared by the other V-1 tokens: the target keeps 1-ε, not 1-ε+ε/V."""
    vocabulary, smoothing = 7, 0.1
    logits, target = draw(5, vocabulary), torch.tensor([0, 3, 6, 2, 2])
    q = torch.full((5, vocabulary), smoothing / (vocabulary - 1), dtype=F64).scatter(1, target[:, None], 1 - smoothing)
    theirs = -(q * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(label_smoothed_cross_entropy(logits, target, smoothing * vocabulary / (vocabulary - 1)), theirs)
    assert abs(label_smoothed_cross_entropy(logits, target, smoothing) - theirs) > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_smoothed_cross_entropy(draw(2, 3), torch.zeros(3, dtype=torch.long)), "target: its shape"),
        (lambda: label_smoothed_cross_entropy(draw(2, 3), torch.zeros(2, dtype=torch.long), 1.5), "smoothing: 1.5"),
        (lambda: learning_rate(0, 512), "step: 0"),
        (lambda: average_checkpoints([]), "checkpoints: none"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_learning_rate_is_equation_3():
    assert learning_rate(4000, 512) == pytest.approx(1 / math.sqrt(512 * 4000))  # both branches meet here: 6.99e-4
    assert learning_rate(4000, 512) == pytest.approx(6.9877e-4, rel=1e-4)
    assert learning_rate(1, 512) == pytest.approx(learning_rate(4000, 512) / 4000)  # the ramp starts one step above zero
    assert learning_rate(16_000, 512) == pytest.approx(learning_rate(4000, 512) / 2)
    assert learning_rate(2000, 512) == pytest.approx(learning_rate(4000, 512) / 2)
    rates = [learning_rate(step, 64, 10) for step in range(1, 50)]
    assert max(rates) == rates[9]


def test_optimizer_follows_the_schedule_from_its_first_step():
    optimizer, schedule = paper_optimizer([nn.Parameter(torch.zeros(1))], d_model=64, warmup_steps=3)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([learning_rate(step, 64, 3) for step in range(1, 7)])
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98) and optimizer.param_groups[0]["eps"] == 1e-9


def test_averaged_checkpoints_are_the_mean():
    models = [nn.Linear(2, 2) for _ in range(3)]
    mean = average_checkpoints([model.state_dict() for model in models])
    torch.testing.assert_close(mean["weight"], sum(model.weight.detach() for model in models) / 3)
    nn.Linear(2, 2).load_state_dict(mean)


def test_sizes_are_the_paper_s():
    assert (BASE.n_layers, BASE.d_model, BASE.d_ff, BASE.n_heads, BASE.dropout) == (6, 512, 2048, 8, 0.1)
    assert (BIG.n_layers, BIG.d_model, BIG.d_ff, BIG.n_heads, BIG.dropout) == (6, 1024, 4096, 16, 0.3)


@pytest.mark.parametrize("config", [BASE, BIG])
def test_parameter_count_is_the_closed_form(config):
    with torch.device("meta"):
        model = Transformer(config)
    c, f = config.d_model, config.d_ff
    attention, feed_forward, norm = 4 * c * c, 2 * c * f + f + c, 2 * c
    per_pair = (attention + feed_forward + 2 * norm) + (2 * attention + feed_forward + 3 * norm)
    assert sum(p.numel() for p in model.parameters()) == config.n_layers * per_pair + config.vocab_size * c
