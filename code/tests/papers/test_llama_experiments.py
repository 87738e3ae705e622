"""The mistakes that the note builds into SmolLM2, built into a small model: each does what its name says, and nothing else."""

import pytest
import torch

from rundoku.papers.llama import Llama, LlamaConfig, experiments

CONFIG = LlamaConfig(
    vocab_size=31, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, d_head=6, rope_base=1e5, max_length=2000, tied=True
)
IDS = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """A small model in SmolLM2's place."""
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    monkeypatch.setattr(experiments, "smol", lambda: (model, None))
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids)


def test_a_model_like_it_is_it(model):
    again = experiments.like()
    assert torch.equal(logits(again), logits(model))
    assert again.embedding.weight.data_ptr() == model.embedding.weight.data_ptr()  # no second copy in memory


@pytest.mark.parametrize("mistake", experiments.MISTAKES)
def test_each_mistake_changes_the_logits_and_leaves_the_original_alone(model, mistake):
    before = logits(model)
    changed = (logits(experiments.mistaken(mistake)) - before).abs().max() / before.abs().max()
    assert changed < 1e-4 if mistake == "all positions + 1,000" else changed > 1e-3
    assert torch.equal(logits(model), before)


def test_repeat_pairs_query_head_h_with_key_value_head_h_mod_g(model):
    """The same is had by the right code from heads in another order: 0, 2 read the first key-value head, 1, 3 the second."""
    order = torch.tensor([0, 2, 1, 3])
    reordered = experiments.like()
    with torch.no_grad():
        for block in reordered.blocks:
            part = block.attention
            part.query.weight = torch.nn.Parameter(part.query.weight.unflatten(0, (4, 6))[order].flatten(0, 1))
            part.output.weight = torch.nn.Parameter(part.output.weight.unflatten(1, (4, 6))[:, order].flatten(1, 2))
    torch.testing.assert_close(logits(experiments.mistaken("repeat")), logits(reordered), rtol=1e-4, atol=1e-4)


def test_the_leaking_mask_shows_the_next_token_to_a_layer():
    real = torch.ones(1, 5, dtype=torch.bool)
    allowed = experiments.mistaken("causal mask off by one").allowed(real, 3)[0, 0]
    assert allowed.sum(-1).tolist() == [4, 5, 5]  # of positions 2, 3 and 4
    assert Llama(CONFIG).allowed(real, 3)[0, 0].sum(-1).tolist() == [3, 4, 5]


def test_token_by_token_the_perplexity_is_that_of_one_pass(model):
    wanted = experiments.nats(model, IDS)[:, 6:].mean().exp()
    torch.testing.assert_close(experiments.stepwise(model, IDS, None, 7).float(), wanted, rtol=1e-4, atol=1e-4)
    padded = torch.cat([torch.full((2, 5), 3), IDS], 1)
    real = (torch.arange(12) >= 5).expand(2, -1)
    torch.testing.assert_close(experiments.stepwise(model, padded, real, 12).float(), wanted, rtol=1e-4, atol=1e-4)
    assert (experiments.stepwise(model, padded, None, 12) - wanted).abs() > 1e-2


def test_positions_are_wrong_only_where_they_are_said_to_be(monkeypatch):
    monkeypatch.setattr(experiments, "PROMPT", 4)
    prompt, step = torch.arange(4)[None], torch.arange(7)[None]
    found = {name: (change(prompt)[0].tolist(), change(step)[0, -1].item()) for name, change in experiments.WRONG_POSITIONS.items()}
    assert all(before == [0, 1, 2, 3] for before, _ in found.values())
    lasts = {name: last for name, (_, last) in found.items()}
    assert lasts == {"none": 6, "one too far": 7, "stuck at the prompt's end": 4, "starting again at 0": 0}
