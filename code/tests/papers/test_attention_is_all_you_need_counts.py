"""What the note counts and measures, against closed forms, torch's own layers and cases worked out by hand."""

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rundoku.data import number_words
from rundoku.papers.attention_is_all_you_need import BASE, Transformer, TransformerConfig, counts, cross_attention_maps, experiments
from rundoku.papers.attention_is_all_you_need.experiments import IDS, TOKENS

F64 = torch.float64
TINY = TransformerConfig(len(TOKENS), n_layers=2, d_model=16, d_ff=16, n_heads=2, dropout=0.0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_recurrent_layers_are_torchs():
    x, width = draw(7, 4), 4
    for ours, theirs, gates in ((counts.recurrent, nn.RNN, 1), (counts.lstm, nn.LSTM, 4)):
        layer = theirs(width, width, bias=False, dtype=F64)
        torch.testing.assert_close(ours(x, layer.weight_ih_l0.T, layer.weight_hh_l0.T), layer(x)[0])
        assert layer.weight_ih_l0.shape == (gates * width, width)


def test_local_attention_is_attention_with_a_band_mask():
    x, window = draw(9, 4), 3
    distance = torch.arange(9)[:, None] - torch.arange(9)
    band = (distance >= 0) & (distance < window)
    torch.testing.assert_close(counts.local_attention(x, window), F.scaled_dot_product_attention(x, x, x, band))


def test_convolution_looks_back_only():
    x, filters = draw(6, 2), draw(2, 2, 3, seed=1)
    past = torch.cat((torch.zeros(2, 2, dtype=F64), x))
    expected = torch.stack([sum(filters[:, :, k] @ past[n + k] for k in range(3)) for n in range(6)])
    torch.testing.assert_close(counts.convolution(x, filters), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("self-attention", lambda n, d: 4 * n * n * d),
        ("recurrent", lambda n, d: 4 * n * d * d),
        ("convolutional", lambda n, d: 2 * 3 * n * d * d),
        ("restricted self-attention", lambda n, d: 4 * n * 9 * d),
        ("multi-head attention, whole", lambda n, d: 8 * n * d * d + 4 * n * n * d),
        ("LSTM", lambda n, d: 16 * n * d * d),
    ],
)
def test_operations_are_the_closed_form(kind, expected):
    assert counts.layer_flops(kind, 24, 16) == expected(24, 16)


def test_longest_chain_counts_what_cannot_run_side_by_side():
    x, w = draw(3, 3).requires_grad_(), draw(3, 3, seed=1)
    assert counts.longest_chain((x @ w) @ w + x @ w) == 2
    assert counts.longest_chain(torch.cat((x @ w, x @ w))) == 1


@pytest.mark.parametrize("length", [9, 27, 30])
def test_path_lengths_are_the_closed_form(length):
    found = counts.path_lengths(length, 4, kernel=3, window=5)
    assert found["self-attention"] == found["multi-head attention, whole"] == 1
    assert found["recurrent"] == length - 1
    assert found["convolutional"] == math.ceil(math.log(length, 3) - 1e-9)
    assert found["convolutional, contiguous"] == math.ceil((length - 1) / 2)
    assert found["restricted self-attention"] == math.ceil((length - 1) / 4)


def test_vocabulary_for_undoes_parameters():
    assert counts.vocabulary_for(BASE, counts.parameters(BASE)) == pytest.approx(BASE.vocab_size)


def test_training_flops_are_six_a_parameter_and_token_where_attention_is_small():
    """Forward 2 and backward 4 operations a weight and token; encoder weights meet source tokens, decoder weights target tokens."""
    config = replace(BASE, n_layers=1)
    with torch.device("meta"):
        model = Transformer(config)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)  # the embedding is multiplied once, as the output layer
    found = counts.training_flops(config, steps=3, tokens=200, length=2)
    assert found == pytest.approx(3 * 6 * weights * 200, rel=0.01)


def test_numerals_keep_training_and_test_apart():
    for held_out in (False, True):
        source, target = experiments.numerals(random.Random(0), 64, digits=6, words=(2, 5), held_out=held_out)
        for row, answer in zip(source.tolist(), target):
            tag, *words = [TOKENS[i] for i in row if i]
            assert 2 <= len(words) <= 5
            number = next(n for n in _readings(words))
            assert number_words.held_out(number) == held_out
            assert experiments.text(answer) == "".join(experiments.SPELL[tag](number))


def _readings(words: list[str]):
    total = group = 0
    for word in words:
        if word == "thousand":
            total, group = total + 1000 * group, 0
        elif word == "hundred":
            group *= 100
        else:
            group += number_words.SMALL.index(word) if word in number_words.SMALL else 10 * (2 + number_words.TENS.index(word))
    yield total + group


def test_loss_floor_is_the_least_smoothed_cross_entropy():
    logits = torch.zeros(1, len(TOKENS), dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits, torch.tensor([5]), label_smoothing=0.1)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() == pytest.approx(experiments.loss_floor(0.1), abs=1e-6)


def test_maps_are_the_weights_that_the_decoder_used():
    torch.manual_seed(0)
    model = Transformer(TINY).double().eval()
    source, target = torch.randint(3, 40, (2, 6)), torch.randint(3, 40, (2, 5))
    source[1, 4:] = 0
    maps = cross_attention_maps(model, source, target)
    assert maps.shape == (2, 2, 2, 5, 6)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 2, 5, dtype=F64))
    assert (maps[:, 1, :, :, 4:] == 0).all()
    layer, (memory, source_mask) = model.decoder.layers[0], model.encode(source)
    x = model.embed(target)
    x = layer.residuals[0](x, layer.self_attention(x, x, x, torch.ones(5, 5).tril().bool()))
    torch.testing.assert_close(maps[0], layer.cross_attention.weights(x, memory, source_mask))
    assert not any(layer.cross_attention._forward_pre_hooks for layer in model.decoder.layers)


def test_alignment_is_one_for_an_eye_on_the_right_word(monkeypatch):
    source = torch.tensor([[IDS[word] for word in ("<ja>", "forty", "five", "thousand", "six")]])
    target = torch.tensor([[IDS[word] for word in ("<bos>", "四", "万", "五", "千", "六", "<eos>")]])
    maps = torch.zeros(1, 1, 2, 6, 5)
    for row, column in ((0, 1), (2, 2), (4, 4)):
        maps[0, 0, 0, row, column] = 1
        maps[0, 0, 1, row, 0] = 1
    maps[0, 0, 1, 4, 4] = 2
    monkeypatch.setattr(experiments, "cross_attention_maps", lambda *_: maps)
    torch.testing.assert_close(experiments.alignment(None, source, target), torch.tensor([[1.0, 1 / 3]]))


def sees_the_future(model: Transformer) -> bool:
    source, target = torch.randint(3, 40, (1, 4)), torch.randint(3, 40, (1, 5))
    other = target.clone()
    other[0, 4] = 3 + (other[0, 4] - 2) % 37
    return not torch.equal(model(source, target)[0, 0], model(source, other)[0, 0])


@pytest.mark.parametrize("fault", experiments.FAULTS)
def test_faults_are_what_they_are_called(fault):
    torch.manual_seed(0)
    model = Transformer(TINY).double().eval()
    sound = Transformer(TINY).double().eval()
    sound.load_state_dict(model.state_dict())
    experiments.spoil(model, fault)
    source, target = torch.randint(3, 40, (2, 4)), torch.randint(3, 40, (2, 5))
    assert sees_the_future(model) == (fault == "causal mask inverted")
    in_the_model = fault not in ("none", "no warm-up", "targets not shifted")  # those are in the training
    assert torch.equal(model(source, target), sound(source, target)) != in_the_model
    attention, x = model.encoder.layers[0].self_attention, draw(1, 4, 16)
    q, k, v = (attention.split(part(x)) for part in (sound.encoder.layers[0].self_attention.query, attention.key, attention.value))
    scale = 1.0 if fault == "scores not scaled" else None
    mask = torch.tensor([True, True, False, True])
    used = ~mask if fault == "padding mask inverted" else mask
    heads = F.scaled_dot_product_attention(q, k, v, used.expand(4, 4), scale=scale)
    torch.testing.assert_close(attention(x, x, x, mask), attention.output(heads.transpose(1, 2).flatten(-2)))
    unscaled = fault == "embeddings not scaled"
    torch.testing.assert_close(model.embedding(source) * (4 if unscaled else 1), model.embedding.weight[source])


def test_training_without_a_ramp_starts_at_the_peak(monkeypatch):
    seen = {}
    for ramp in (True, False):
        torch.manual_seed(0)
        model = Transformer(TINY)
        before = model.embedding.weight.detach().clone()
        batches = iter([experiments.numerals(random.Random(0), 4, digits=2, words=(1, 3), held_out=False)])
        experiments.train(model, batches, steps=1, warmup=50, smoothing=0.1, keep_every=1, ramp=ramp)
        seen[ramp] = (model.embedding.weight - before).abs().max().item()
    assert seen[False] == pytest.approx(50 * seen[True], rel=1e-3)  # Adam's first step is as large as its rate


def test_unknown_fault_is_named():
    with pytest.raises(ValueError, match="fault: 'nothing'"):
        experiments.small_run(fault="nothing", smoothing=0.1, layers=1, steps=1, seed=0)
