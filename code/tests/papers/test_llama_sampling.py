"""Sampling against transformers' warpers and by frequency, and what generation refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rundoku.papers.llama import Llama, LlamaConfig, generate, next_token_probabilities

TINY = LlamaConfig(vocab_size=31, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, d_head=6, max_length=24)


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 5, 40, 60]),
    top_p=st.sampled_from([None, 1e-6, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p, seed):
    process = pytest.importorskip("transformers.generation.logits_process", reason="transformers is in the test environment only")
    logits = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    wanted = process.TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    wanted = process.TopKLogitsWarper(top_k)(None, wanted) if top_k is not None else wanted
    wanted = process.TopPLogitsWarper(top_p)(None, wanted) if top_p is not None and top_p < 1 else wanted
    torch.testing.assert_close(next_token_probabilities(logits, temperature, top_k, top_p), wanted.softmax(-1))


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    kept = [(next_token_probabilities(logits, top_p=p) > 0).tolist() for p in (0.39, 0.41, 0.71, 0.95)]
    assert kept == [[False, True, False, False], [False, True, False, True], [False, True, True, True], [True] * 4]
    assert next_token_probabilities(logits, temperature=0).tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(next_token_probabilities(logits), torch.tensor([0.1, 0.4, 0.2, 0.3]))


def test_what_is_drawn_follows_the_distribution():
    torch.manual_seed(0)
    model = Llama(TINY).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)
        ids = torch.tensor([[1, 2, 3]])
        chances = next_token_probabilities(model(ids)[0, -1], temperature=0.8, top_k=6)
    drawn = generate(model, ids.expand(4000, 3), 1, temperature=0.8, top_k=6, generator=torch.Generator().manual_seed(1))[:, -1]
    shares = drawn.bincount(minlength=31) / 4000
    assert (shares[chances == 0] == 0).all() and (chances > 0).sum() == 6
    assert (shares - chances).abs().max() < 4 * (0.25 / 4000) ** 0.5  # four standard errors


def test_a_seed_gives_the_same_text_and_another_seed_another():
    torch.manual_seed(0)
    model, ids = Llama(TINY), torch.tensor([[1, 2]])
    texts = [generate(model, ids, 15, temperature=1.0, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_arguments_that_make_no_sense_are_refused():
    logits, model, ids = torch.zeros(3), Llama(TINY), torch.tensor([[1, 2]])
    for wrong, message in (
        ({"temperature": -1}, "temperature: got -1"), ({"top_k": 0}, "top_k: got 0"), ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.1}, r"top_p: got 1.1; expected above 0 and at most 1"), ({"temperature": float("nan")}, "temperature: got nan"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            next_token_probabilities(logits, **wrong)
        with pytest.raises(ValueError, match=message):
            generate(model, ids, 1, **wrong)
    with pytest.raises(ValueError, match=r"n_new: 2 \+ 23 tokens; expected at most max_length = 24"):
        generate(model, ids, 23)
    with pytest.raises(ValueError, match="n_new: got -1"):
        generate(model, ids, -1)
    with pytest.raises(ValueError, match="ids: values from"):
        generate(model, ids + 30, 1)
    assert torch.equal(generate(model, ids, 0), ids) and generate(model, ids, 22).shape == (1, 24)
