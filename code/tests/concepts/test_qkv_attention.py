"""The worked example in plain Python, the real layer against torch's own parts, and what each mistake must show."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rundoku.concepts import qkv_attention
from rundoku.concepts.qkv_attention import experiments
from rundoku.data import smollm2
from rundoku.data.source import MissingData

ROOT = Path(__file__).parents[3]
TEXT = "The cat sat on the mat because it was tired."


@pytest.fixture(scope="module", autouse=True)
def plain_results(tmp_path_factory):
    """Run every experiment here, from the source as it stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rundoku.show.experiments.default_store", lambda: None)
        yield


@pytest.fixture(scope="module")
def real():
    try:
        smollm2.metadata()
    except MissingData as missing:
        pytest.skip(str(missing))
    tokens, ids = experiments.encode(TEXT)
    return tokens, ids, experiments.first_layer(ids)


def section(name):
    source = (ROOT / "code/rundoku/concepts/qkv_attention/note.py").read_text(encoding="utf-8")
    return re.search(rf"\[start:{name}\]\n(.*?)# --8<-- \[end:{name}\]", source, re.S)[1]


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def test_the_worked_example_is_what_plain_python_makes_of_its_matrices(capsys):
    note = {"torch": torch, "math": math, "F": F, "publish": lambda **values: None}
    for name in ("projections", "scores", "weights"):
        exec(section(name), note)
    q, k, v = (product(note["X"].tolist(), note[f"W_{part}"].tolist()) for part in "QKV")
    scores = product(q, [*zip(*k)])
    assert scores == note["scores"].tolist() == [[0, 0, 2], [2, 4, 4], [2, 6, 4]]
    weights = [[math.exp(score / 2) / sum(math.exp(other / 2) for other in row) for score in row] for row in scores]
    torch.testing.assert_close(note["weights"], torch.tensor(weights))
    torch.testing.assert_close(note["output"], torch.tensor(product(weights, v)))
    worked = f"1 : {math.e**2:.3f} : {math.e:.3f}", f"{1 + math.e + math.e**2:.3f}", f"{product(weights, v)[2][0]:.3f}"
    for language in ("en", "ja", "zh"):  # the page does the last row by hand
        page = (ROOT / f"notes/qkv-attention/index.{language}.md").read_text(encoding="utf-8")
        for text in (*worked, *(f"${weight:.3f}$" for weight in weights[2]), "(1, 0, 1, 3)", "= 6$"):
            assert text in page, f"{text} is not in index.{language}.md"


def test_a_sharp_query_looks_up_what_a_dictionary_does():
    keys, values = torch.eye(5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = [qkv_attention.scaled_dot_product_attention(beta * keys, keys, values, scale=1.0) for beta in (0.0, 3.0, 60.0)]
    torch.testing.assert_close(soft[0], values.mean(0).expand(5, 3))
    share = math.exp(3) / (math.exp(3) + 4)
    torch.testing.assert_close(soft[1], share * values + (1 - share) / 4 * (values.sum(0) - values))
    torch.testing.assert_close(soft[2], values)


def test_the_concept_introduces_nothing():
    for name in qkv_attention.__all__:
        assert getattr(qkv_attention, name).__module__.startswith("rundoku.papers."), name


def rotated(x, base=100_000.0):
    """Rotate the pairs (0, 1), (2, 3) … of x [H, N, D] as complex numbers."""
    frequencies = base ** -(torch.arange(0, x.shape[2], 2).double() / x.shape[2])
    angles = torch.arange(x.shape[1])[:, None] * frequencies
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).float()


def test_the_real_layer_is_what_torchs_own_parts_make_of_the_file(real):
    tokens, ids, found = real
    assert "".join(tokens) == TEXT and [tokens[i] for i in (1, 4)] == [" cat", " the"]
    weight = {part: smollm2.tensor(f"blk.0.attn_{part}.weight") for part in ("norm", "q", "k", "v", "output")}
    x = F.rms_norm(F.embedding(ids, smollm2.tensor("token_embd.weight")), (576,), weight["norm"], 1e-5)
    q, k, v = (F.linear(x, weight[part]).view(len(ids), -1, 64).transpose(0, 1) for part in "qkv")
    expected = {"x": x, "query": rotated(q), "key": rotated(k), "value": v}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    output = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, enable_gqa=True)  # [9, N, 64]
    run = experiments.trace(text=TEXT)
    weights = torch.tensor(run.weights)
    torch.testing.assert_close(weights @ v.repeat_interleave(3, 0), output, rtol=1e-5, atol=1e-6)
    added = F.linear(output.transpose(0, 1).flatten(1), weight["output"])
    assert run.norms.heads == pytest.approx(output.norm(dim=-1).mean().item(), rel=1e-5)
    assert run.norms.added == pytest.approx(added.norm(dim=-1).mean().item(), rel=1e-5)
    assert run.shapes.as_dict()["query"] == [9, len(ids), 64] and run.shapes.as_dict()["key"] == [3, len(ids), 64]
    assert max(run.from_torch, run.row_sum, run.outside, run.groups) < 1e-6


def test_each_mistake_shows_what_the_page_says_of_it():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 7, 4)
    right = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    made = {mistake: experiments.attend(query, key, value, mistake) for mistake in experiments.MISTAKES}
    torch.testing.assert_close(made["none"][1], right)
    torch.testing.assert_close(made["no scale"][1], F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0))
    torch.testing.assert_close(made["key and value swapped"][1], F.scaled_dot_product_attention(query, value, key, is_causal=True))
    torch.testing.assert_close(made["softmax over the queries"][0].sum(-2), torch.ones(2, 7))
    late = made["mask after the softmax"][0]
    assert torch.equal(late.triu(1), torch.zeros(2, 7, 7)) and (late.sum(-1)[:, :-1] < 1).all()
    torch.testing.assert_close(late / late.sum(-1, keepdim=True), made["none"][0])
    later = key.clone()
    later[:, -1] += 1.0  # only the last position changes
    for mistake, (_, output) in made.items():
        moved = (experiments.attend(query, later, value, mistake)[1] - output)[:, :-1].abs().max().item()
        assert (moved > 1e-3) == (mistake == "mask after the softmax"), mistake
    other = query.clone()
    other[:, -1] += 1.0  # a later query, which the other axis of the softmax sees
    for mistake, (_, output) in made.items():
        moved = (experiments.attend(other, key, value, mistake)[1] - output)[:, :-1].abs().max().item()
        assert (moved > 1e-3) == (mistake == "softmax over the queries"), mistake


def test_on_the_real_layer_only_two_mistakes_leak_and_the_unscaled_softmax_is_sharp(real):
    found = experiments.mistakes(text=TEXT, other=TEXT.replace("tired", "hungry"))
    leaking = {name for name, result in found.items() if result.leak != 0}
    assert leaking == {"softmax over the queries", "mask after the softmax"}
    assert found.none.moved == 0 and all(result.moved > 0.1 for name, result in found.items() if name != "none")
    assert found["no scale"].entropy < found.none.entropy and found["no scale"].slope < found.none.slope
    ids = experiments.encode(TEXT)[1]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # the keys' matrix is not square
        experiments.first_layer(ids)["x"] @ smollm2.tensor("blk.0.attn_k.weight")
