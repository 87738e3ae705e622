"""Greedy and beam search against brute force over every sentence of a tiny language, and against each other."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rundoku.papers.attention_is_all_you_need import (
    Transformer,
    TransformerConfig,
    beam_search,
    greedy_search,
    length_penalty,
    translate,
    translate_greedily,
)

EOS, BOS = 0, 1


def language(vocabulary: int, seed: int, sharpness: float = 2.0):
    """Return a function from a prefix to log-probabilities that look random but depend on the whole prefix."""

    def log_probabilities(prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 7919 + hash(prefix) % 1_000_003)
        return torch.log_softmax(sharpness * torch.randn(vocabulary, generator=generator, dtype=torch.float64), dim=-1)

    return log_probabilities


def as_step(*languages, beams: int):
    """Return a search's `step` for a batch in which every row of sources has a language of its own."""

    def step(prefixes: torch.Tensor) -> torch.Tensor:
        rows = prefixes.tolist()
        assert len(rows) == len(languages) * beams
        return torch.stack([languages[i // beams](tuple(row)) for i, row in enumerate(rows)])

    return step


def every_sentence(log_probabilities, vocabulary: int, max_length: int, alpha: float) -> list[tuple[float, tuple[int, ...]]]:
    """Return every sentence of at most `max_length` tokens with its score, best first."""
    found = []
    others = [token for token in range(vocabulary) if token != EOS]
    for length in range(1, max_length + 1):
        for words in itertools.product(others, repeat=length - 1):
            sentence = (BOS, *words, EOS)
            total = sum(log_probabilities(sentence[: i + 1])[token].item() for i, token in enumerate(sentence[1:]))
            found.append((total / ((5 + length) / 6) ** alpha, sentence))
    return sorted(found, reverse=True)


def cut(tokens: torch.Tensor) -> tuple[int, ...]:
    row = tokens.tolist()
    return tuple(row[: row.index(EOS, 1) + 1])


@settings(max_examples=25, deadline=None)
@given(vocabulary=st.integers(2, 4), max_length=st.integers(1, 4), alpha=st.sampled_from([0.0, 0.6, 1.5]), seed=st.integers(0, 10**6))
def test_a_wide_beam_is_brute_force(vocabulary, max_length, alpha, seed):
    languages = [language(vocabulary, seed), language(vocabulary, seed + 1)]
    beams = (vocabulary - 1) ** (max_length - 1) + 3  # nothing is ever cut off
    prefix = torch.full((2, 1), BOS)
    found, scores = beam_search(as_step(*languages, beams=beams), prefix, EOS, max_length, beams, alpha)
    for row, log_probabilities in enumerate(languages):
        expected = every_sentence(log_probabilities, vocabulary, max_length, alpha)
        kept = min(beams, len(expected))
        assert scores[row, :kept].tolist() == pytest.approx([score for score, _ in expected[:kept]])
        assert (scores[row, kept:] == -math.inf).all()
        assert [cut(tokens) for tokens in found[row, :kept]] == [sentence for _, sentence in expected[:kept]]


@settings(max_examples=25, deadline=None)
@given(beams=st.integers(1, 6), alpha=st.sampled_from([0.0, 0.6]), seed=st.integers(0, 10**6))
def test_a_narrow_beam_reports_true_scores_in_order_without_repeats(beams, alpha, seed):
    log_probabilities = language(4, seed)
    found, scores = beam_search(as_step(log_probabilities, beams=beams), torch.full((1, 1), BOS), EOS, 5, beams, alpha)
    every = {sentence: score for score, sentence in every_sentence(log_probabilities, 4, 5, alpha)}
    sentences = [cut(tokens) for tokens in found[0]]
    assert len(set(sentences)) == beams
    assert scores[0].tolist() == pytest.approx([every[sentence] for sentence in sentences])
    assert scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    assert scores[0, 0] <= max(every.values()) + 1e-9


def test_stopping_early_changes_nothing():
    """The bound that ends the search must hold: a search forced on to the end finds the same sentences."""
    for seed in range(30):
        log_probabilities = language(4, seed, sharpness=3.0)
        calls = []

        def step(prefixes, log_probabilities=log_probabilities, calls=calls):
            calls.append(prefixes.shape[-1])
            return torch.stack([log_probabilities(tuple(row)) for row in prefixes.tolist()])

        found, scores = beam_search(step, torch.full((1, 1), BOS), EOS, 8, 2, 1.0)
        pair = as_step(log_probabilities, lambda prefix: torch.full((4,), -math.log(4), dtype=torch.float64), beams=2)
        together, their_scores = beam_search(pair, torch.full((2, 1), BOS), EOS, 8, 2, 1.0)  # the flat language keeps the search going
        assert torch.equal(found[0], together[0]) and torch.equal(scores[0], their_scores[0])
        if len(calls) < 8:
            break
    else:
        pytest.fail("no search stopped early, so nothing was tested")


def test_length_penalty_prefers_longer_sentences():
    def two_ways(prefix):  # stop at once with 0.4, or go on with 0.6 and stop then with 0.6
        go_on = {1: (0.4, 0.0, 0.6), 2: (0.6, 0.0, 0.4)}.get(len(prefix), (1.0, 0.0, 0.0))
        return torch.tensor(go_on, dtype=torch.float64).log()

    step, prefix = as_step(two_ways, beams=3), torch.full((1, 1), BOS)
    assert cut(beam_search(step, prefix, EOS, 4, 3, alpha=0.0)[0][0, 0]) == (BOS, EOS)
    assert cut(beam_search(step, prefix, EOS, 4, 3, alpha=0.9)[0][0, 0]) == (BOS, 2, EOS)


def test_length_penalty_is_the_formula():
    assert length_penalty(1, 0.6) == 1
    assert length_penalty(7, 1.0) == 2
    assert length_penalty(19, 0.5) == 2


def test_negative_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha: -1"):
        beam_search(as_step(language(3, 0), beams=2), torch.full((1, 1), BOS), EOS, 3, 2, -1)


def test_greedy_takes_the_likeliest_and_waits_for_the_others():
    languages = [language(4, seed) for seed in range(6)]
    found = greedy_search(as_step(*languages, beams=1), torch.full((6, 1), BOS), EOS, 7)
    for row, log_probabilities in zip(found.tolist(), languages):
        expected = [BOS]
        while len(expected) < 8 and (len(expected) == 1 or expected[-1] != EOS):
            expected.append(log_probabilities(tuple(expected)).argmax().item())
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {EOS}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=9, n_layers=1, d_model=8, d_ff=8, n_heads=2, dropout=0.0)
    return Transformer(config).double().eval()


def test_translating_in_a_batch_is_translating_alone(model):
    source = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    found, scores = translate(model, source, beam_size=3, max_length=6)
    for row, alone in enumerate((source[:1], source[1:, :2])):
        one, one_score = translate(model, alone, beam_size=3, max_length=6)
        torch.testing.assert_close(one_score[0], scores[row])
        assert torch.equal(one[0], found[row])
        assert torch.equal(
            translate_greedily(model, alone, 6)[0],
            translate_greedily(model, source, 6)[row][: translate_greedily(model, alone, 6).shape[1]],
        )


def test_a_translation_s_score_is_the_model_s(model):
    source = torch.tensor([[3, 4, 5]])
    found, scores = translate(model, source, beam_size=4, alpha=0.6, max_length=5)
    for tokens, score in zip(found[0], scores[0]):
        length = tokens.tolist().index(model.config.eos)
        log_p = model(source, tokens[None, :length]).log_softmax(-1)[0]
        total = sum(log_p[i, tokens[i + 1]] for i in range(length))
        torch.testing.assert_close(score, total / length_penalty(length, 0.6))


def test_a_translation_may_be_50_tokens_longer_than_its_source(model):
    found, _ = translate(model, torch.tensor([[3, 4, 5]]), beam_size=2)
    assert found.shape == (1, 2, 1 + 3 + 50)
