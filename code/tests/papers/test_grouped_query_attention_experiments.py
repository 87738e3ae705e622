"""The note's runs: what they count must be what they say, and each mistake they show must be that mistake."""

import pytest
import torch

from rundoku.data import smollm2
from rundoku.data.source import MissingData
from rundoku.papers.attention_is_all_you_need import MultiHeadAttention
from rundoku.papers.grouped_query_attention import convert, experiments


def have_smollm2() -> bool:
    try:
        smollm2.metadata()
    except MissingData:
        return False
    return True


needs_smollm2 = pytest.mark.skipif(not have_smollm2(), reason="SmolLM2 is not installed: see rundoku.data.smollm2")


@pytest.mark.parametrize(("heads", "kv_heads", "length", "batch"), [(8, 8, 50, 3), (8, 2, 50, 3), (8, 1, 7, 1)])
def test_traffic_is_what_the_shapes_say(heads, kv_heads, length, batch):
    width, d = 16, 16 * heads
    counted = experiments.decode(d, heads, kv_heads, length, batch)
    projections = 2 * d * d + 2 * d * kv_heads * width  # query and output, key and value
    assert counted.moved["weights"] == projections
    assert counted.moved["cache"] == 2 * batch * kv_heads * length * width  # every key and every value once
    assert counted.operations == batch * (projections + 2 * heads * length * width)
    assert counted.moved["copied"] == 0
    vectors = 2 * d + 2 * d + 2 * (d + kv_heads * width)  # x and q, o and y, x and k, x and v
    attended = 2 * (d + heads * length)  # q and scores, weights and o
    assert counted.moved["rest"] == batch * (vectors + attended)


def test_copies_are_counted_as_copies():
    folded, repeated, broadcast = (experiments.decode(64, 8, 2, 50, 3, way) for way in experiments.WAYS)
    cache = 2 * 3 * 2 * 50 * 8
    assert folded.moved["copied"] == 0 and repeated.moved["copied"] == broadcast.moved["copied"] == 4 * cache
    # the copies are written and read again, and the cache is still read once
    assert repeated.moved["rest"] - folded.moved["rest"] == 2 * 4 * cache
    assert repeated.operations == folded.operations


@pytest.mark.parametrize("way", experiments.WAYS.values())
def test_every_way_to_share_computes_the_same(way):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 4, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    torch.testing.assert_close(way(query, key, value), experiments.WAYS["folded"](query, key, value))


def test_widening_counts_the_weights_alone():
    found = experiments.feed_forward_widening.__wrapped__(d_model=16, n_heads=4, d_ff=(32, 40), attentions=3, feed_forwards=2)
    assert found == {"saved": 3 * 2 * (16 * 16 - 16 * 4), "added": 2 * 2 * 16 * 8}


def test_the_faulty_conversions_are_the_faults_they_name():
    torch.manual_seed(0)
    old = MultiHeadAttention(16, 4)
    heads = old.key.weight.detach().unflatten(0, (4, -1))
    every_other = experiments.every_other(old, 2).key.weight.unflatten(0, (2, -1))
    torch.testing.assert_close(every_other, torch.stack([(heads[0] + heads[2]) / 2, (heads[1] + heads[3]) / 2]))
    pooled, right = experiments.queries_too(old, 2), convert(old, 2)
    queries = pooled.query.weight.unflatten(0, (4, -1))
    assert torch.equal(queries[0], queries[1]) and torch.equal(queries[2], queries[3]) and not torch.equal(queries[0], queries[2])
    assert torch.equal(pooled.key.weight, right.key.weight) and torch.equal(pooled.output.weight, old.output.weight)


def test_the_character_model_sees_no_future():
    torch.manual_seed(0)
    model, tokens = experiments.CharacterModel(), torch.randint(128, (2, 10))
    later = tokens.clone()
    later[:, 6] = (later[:, 6] + 1) % 128
    moved = (model(later) - model(tokens)).abs().amax(dim=(0, 2))
    assert (moved[:6] == 0).all() and (moved[6:] > 0).all()


def test_training_measures_where_it_is_asked_and_resumes_the_schedule():
    text = torch.randint(128, (4000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = experiments.CharacterModel()
    before = experiments.evaluate(model, text)
    losses = experiments.train(model, text, text, 5, (5, 7, 9), seed=0)
    assert len(losses) == 3 and losses[0] == before and losses[2] == experiments.evaluate(model, text) != before


def test_losses_are_gathered_by_name():
    shares = [{name: [float(i + j) for j in range(3)] for i, name in enumerate(experiments.RUNS)} for _ in range(2)]
    curves = experiments.by_run([experiments.Result({"curves": each}) for each in shares])
    assert curves["GQA-2"].shape == (2, 3) and torch.equal(curves["mean"], curves["MQA"])
    assert experiments.lost(curves, 2)["random_once"] == 4.0 and experiments.lost(curves, 2)["gqa_left"] == 1.0


@needs_smollm2
def test_smollm2s_sizes_are_those_of_its_tensors():
    layers, heads, kv_heads, width = experiments.smollm2_sizes()
    assert (layers, heads, kv_heads, width) == (30, 9, 3, 64)
    assert smollm2.tensor("blk.0.attn_q.weight").shape == (heads * width, heads * width)
    assert smollm2.tensor("blk.0.attn_k.weight").shape == (kv_heads * width, heads * width)


@needs_smollm2
def test_real_heads_are_hurt_by_mistakes_only():
    found = experiments.real_heads.__wrapped__()
    assert found["interleave"] < 1e-5 and found["masked"] == 0 and found["decode_first_only"] < 1e-5
    assert found["same"] == 3  # h // 3 == h % 3 for 0, 4 and 8
    assert found["leaking"] == 6  # all but the first head of each group
    assert min(found["repeat"], found["flag"], found["decode_flag"]) > 0.05


@needs_smollm2
def test_pooling_commutes_with_the_rotation_but_not_with_a_norm():
    found = experiments.pooling_order.__wrapped__()
    assert found["plain"] < 1e-5 and found["normalised"] > 0.05


@needs_smollm2
def test_the_first_layer_is_causal_attention_on_real_words():
    query, key, value, weight = experiments.first_layer()
    assert query.shape[1:2] == (9,) and key.shape == value.shape and key.shape[1] == 3 and weight.shape == (576, 576)
    assert query.shape[2] > 100
    turned = experiments.rotated(query)
    torch.testing.assert_close(turned[:, :, 0], query[:, :, 0])  # position 0 is not turned
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))
