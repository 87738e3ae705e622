import re
from pathlib import Path

import pytest

from rundoku.site.catalogue import CatalogueError, load_labels
from rundoku.site.labels import is_symbolic

ROOT = Path(__file__).resolve().parents[3]
OWN = "notes/small-net/labels.yml"
TEXT = """
figures:
  curve: {caption: {en: 'Loss {final:.2f}', ja: '損失 {final:.2f}', zh: '损失 {final:.2f}'}, alt: {en: a, ja: あ, zh: 甲}}
tables:
  counts: {caption: {en: Counts, ja: 個数, zh: 数量}}
labels:
  Loss: {ja: ロス値, zh: 损失值}
  'rank {} {}': {ja: 'ランク{} {}', zh: '秩{} {}'}
keep: [tiny]
"""


@pytest.fixture
def labels(site):
    site.write(OWN, TEXT)
    return load_labels(site.root, "small-net")


def test_the_common_labels_of_the_repository_load():
    labels = load_labels(ROOT, "no-such-note")
    assert labels.translate("Sequence length", "ja") == "系列長"
    assert labels.translate("Training step", "zh") == "训练步数"
    assert labels.translate("Shared memory", "ja") == "共有メモリ"
    assert labels.translate("sm_80", "zh") == "sm_80"


def test_a_note_without_labels_has_the_common_ones(site):
    assert load_labels(site.root, "later").translate("Loss", "ja") == "損失"


def test_a_notes_own_words_go_before_the_common_ones(labels):
    assert (labels.translate("Loss", "ja"), labels.translate("Loss", "zh"), labels.translate("Loss", "en")) == ("ロス値", "损失值", "Loss")
    assert labels.translate("tiny", "ja") == labels.translate("tiny", "zh") == "tiny"


def test_placeholders_stand_for_numbers_and_may_change_places(labels):
    assert labels.translate("layer 12", "ja") == "第12層"
    assert labels.translate("layer 1,024", "zh") == "第1,024层"
    assert labels.translate("3 of 4.5", "ja") == "4.5のうち3"
    assert labels.translate("rank 2 64", "zh") == "秩2 64"
    assert labels.translate("layer 12", "en") == "layer 12"


def test_the_parts_of_a_list_are_translated_one_by_one(labels):
    assert labels.translate("Loss, fp16, layer 3", "ja") == "ロス値、fp16、第3層"
    assert labels.translate("Loss, fp16, layer 3", "zh") == "损失值，fp16，第3层"
    assert labels.translate("Loss, fp16, layer 3", "en") == "Loss, fp16, layer 3"
    with pytest.raises(CatalogueError, match="found no translation of 'Loss, gain'"):
        labels.translate("Loss, gain", "ja")


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
@pytest.mark.parametrize("label", ["layer x", "loss", "layer ", "3 of", "accuracy (%)"])
def test_a_label_without_translation_is_named_in_every_language(labels, label, language):
    with pytest.raises(CatalogueError, match=re.escape(f"{OWN}: labels: found no translation of '{label.strip()}'")):
        labels.translate(label, language)


@pytest.mark.parametrize(
    "label",
    [
        *("", "12", "−0.5", "1,024", "1e-3", "10⁻³", "65 M", "3.5 ms", "×2", "N", "λ", "d₁", "N = 512", "a b", "GB/s", "√d", "q·k", "…"),
        *("fp16", "num_warps", "torch.nn.Linear", "gfx942", "64x64", "mma.sync.m16n8k16", "fp32, D=64", "三百"),
    ],
)
def test_numbers_units_and_symbols_need_no_translation(labels, label):
    assert is_symbolic(label)
    assert labels.translate(label, "ja") == label


@pytest.mark.parametrize("label", ["Loss", "rank 4", "512 tokens", "LoRA", "min-max", "1st", "ab", "1" * 80 + "xx"])
def test_words_do_need_one(label):
    assert not is_symbolic(label)


def test_captions_and_alternative_texts_by_name(labels):
    assert labels.caption("figure", "curve", "ja") == "損失 {final:.2f}"
    assert labels.caption("table", "counts", "zh") == "数量"
    assert labels.alt("curve", "zh") == "甲"
    assert labels.names("figure") == ("curve",)
    with pytest.raises(CatalogueError, match=rf"{OWN}: figures.counts: found nothing, expected the words of the figure 'counts'"):
        labels.caption("figure", "counts", "en")
    with pytest.raises(CatalogueError, match=r"tables\.curve"):
        labels.caption("table", "curve", "en")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", alt: {en: a, ja: あ, zh: 甲}", "", "figures.curve.alt: found nothing"),
        ("zh: 甲}}", "zh: ''}}", "figures.curve.alt.zh: found '', expected text that is not empty"),
        ("zh: '损失 {final:.2f}'", "zh: '损失'", "figures.curve.caption.zh: found '损失', expected the same values as in English (final)"),
        ("ja: '損失 {final:.2f}'", "ja: '{final'", "figures.curve.caption.ja: found '{final', expected braces that close"),
        ("caption: {en: Counts", "alt: {en: x, ja: x, zh: x}, caption: {en: Counts", "tables.counts.alt: found"),
        ("ja: ロス値, ", "", "labels.Loss.ja: found nothing"),
        ("ja: ロス値, ", "ja: ロス値, en: Loss, ", "labels.Loss.en: found 'Loss', expected no such field"),
        ("ja: 'ランク{} {}'", "ja: 'ランク{}'", "labels.rank {} {}.ja: found 'ランク{}', expected the 2 number(s)"),
        ("ja: 'ランク{} {}'", "ja: 'ランク{0} {2}'", "labels.rank {} {}.ja: found 'ランク{0} {2}', expected the 2 number(s)"),
        ("keep: [tiny]", "keep: tiny", "keep: found 'tiny', expected a list"),
        ("labels:\n", "words: {}\nlabels:\n", "words: found {}, expected no such field; known are figures, tables, labels, keep"),
        ("labels:\n", "labels:\n  3: {ja: 三, zh: 三}\n", "labels: found 3, expected names that are text"),
    ],
)
def test_a_mistake_is_named(site, old, new, message):
    assert old in TEXT
    site.write(OWN, TEXT.replace(old, new, 1))
    with pytest.raises(CatalogueError) as error:
        load_labels(site.root, "small-net")
    assert str(error.value).startswith(f"{OWN}: ")
    assert message in str(error.value)
