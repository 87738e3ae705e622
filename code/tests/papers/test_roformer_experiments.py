"""The note's runs: what they compare must be what they say, and the benchmarks must measure the same thing for everyone."""

import pytest
import torch
from torch.nn import functional as F

from rundoku.data import smollm2
from rundoku.data.shakespeare import plays
from rundoku.data.source import MissingData
from rundoku.gpu.bench import measure
from rundoku.papers.roformer import benchmarks, experiments


@pytest.fixture(scope="module")
def found():
    try:
        return experiments.contents(40)
    except (MissingData, ImportError) as missing:
        pytest.skip(str(missing))


def test_the_sizes_are_those_of_the_file(found):
    metadata = smollm2.metadata()
    assert metadata["llama.rope.freq_base"] == experiments.BASE
    assert metadata["llama.rope.dimension_count"] == experiments.WIDTH
    assert metadata["llama.context_length"] == 8192
    assert (metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]) == (experiments.HEADS, experiments.KEY_HEADS)
    assert found.query.shape == found.key.shape == found.value.shape == (9, 40, 64)


def test_the_first_layer_attends_as_transformers_does(found):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    parameters = {"rope_type": "default", "rope_theta": experiments.BASE}
    config = llama.LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, rope_parameters=parameters)
    tables = llama.LlamaRotaryEmbedding(config)(found.query, torch.arange(40)[None])
    query, key = llama.apply_rotary_pos_emb(found.query[None], found.key[None], *tables)
    wanted = F.scaled_dot_product_attention(query, key, found.value[None], is_causal=True)[0]
    _, ours = experiments._attend(*experiments.mistaken("none", found, 0), torch.ones(40, 40).tril().bool())
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_the_files_own_order_is_the_interleaved_layout(found):
    by_file = [experiments.rotate(x, *experiments._ours(torch.arange(40)), "interleaved") for x in (found.raw_query, found.raw_key)]
    query, key, _ = experiments.mistaken("none", found, 0)
    torch.testing.assert_close(by_file[0] @ by_file[1].mT, query @ key.mT, rtol=1e-4, atol=1e-3)


def test_what_every_mistake_costs_follows_from_what_it_is(found):
    cost = experiments.mistakes(length=64)
    assert cost["none"].weights == cost["none"].output == cost["value rotated too"].weights == 0
    relative = ("none", "wrong layout", "query one position late")
    assert {name for name, each in cost.items() if each.moves < 1e-5} == {*relative}
    assert all(each.output > 0.02 for name, each in cost.items() if name != "none")


def test_precision_falls_in_the_order_of_what_is_rounded(found):
    error = experiments.shifted(shifts=(0, 10_000), length=64).error
    at = [error[name][1] for name in ("float64 angles", "float32 angles", "bfloat16 tables", "bfloat16 angles")]
    assert at == sorted(at)
    assert at[0] < 1e-6 < at[-1]


def test_scores_by_distance_are_those_of_the_rotation_written_out(found):
    mean = torch.tensor(experiments.by_distance(distances=(0, 7), length=40).mean)
    angles = 7 * experiments.BASE ** -(torch.arange(32, dtype=torch.float64) / 32)
    query, key = (torch.complex(*x.double().mean(1).chunk(2, -1)) for x in (found.query, found.key))  # [H, D/2]
    wanted = (query * key.conj() * torch.exp(1j * angles)).real.sum(-1) / 8
    torch.testing.assert_close(mean[:, 1].double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_every_model_learns_looks_back_only_and_a_run_is_its_seeds(positions):
    try:
        plays()
    except MissingData as missing:
        pytest.skip(str(missing))
    torch.manual_seed(0)
    model, characters = experiments.CharacterModel(7, positions, d_model=16), torch.randint(7, (2, 9))
    later = characters.clone()
    later[:, -1] = (later[:, -1] + 1) % 7
    assert torch.equal(model(characters)[:, :-1], model(later)[:, :-1])
    order = [1, 0, *range(2, 9)]
    assert not torch.allclose(model(characters)[:, -1], model(characters[:, order])[:, -1], atol=1e-5)
    first, second = (experiments.character_model(positions=positions, length=16, batch_size=4, steps=50, seed=3) for _ in range(2))
    assert first.as_dict() == second.as_dict()
    assert first.loss[-1] < first.loss[0] < 5
    assert len(first.places) == len(first.by_place["10000"]) == 4


@pytest.mark.parametrize("case", benchmarks.CASES)
def test_benchmarks_compare_like_with_like(case, monkeypatch):
    launch = pytest.importorskip("rundoku.gpu.launch", reason="the kernels need triton, which exists for Linux", exc_type=ImportError)
    device = "cpu" if launch.INTERPRETED else "cuda"
    monkeypatch.setattr(torch, "compile", lambda function: function)
    bench = next(bench for bench in benchmarks.benchmarks() if bench.case == case)
    small = {"B": 2, "H": 3, "G": 1, "N": 6, "D": 16}

    def prepare(device):
        calls, exact = benchmarks._calls(case, small, "float16", device)
        assert {len(call()) for call in calls.values()} == {len(exact)} == {2}
        return calls, exact

    rows = measure(bench.__class__(case, small, "float16", 1.0, 1.0, prepare), device, "a card", lambda call: (1.0, 1.0, 1.0))
    assert [row.provider for row in rows] == ["rundoku", "torch", "torch.compile"]


def test_traffic_is_counted_by_the_formulas_of_the_kernel():
    found = next(b for b in benchmarks.benchmarks() if b.sizes == {"B": 4, "H": 32, "G": 8, "N": 4096, "D": 128})
    elements = 4 * 40 * 4096 * 128
    assert found.flops == 3 * elements
    assert found.bytes == 2 * 2 * elements + 4 * 4096 * 128
