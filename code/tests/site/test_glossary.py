from pathlib import Path

import pytest

from rundoku.site.catalogue import LANGUAGES, CatalogueError
from rundoku.site.glossary import load_glossary

ROOT = Path(__file__).resolve().parents[3]
FILE = "notes/glossary.yml"
MEANS = "means: {en: m, ja: 意, zh: 义}}"
BASE = "{en: Net, ja: 網, zh: 网, means: {en: m, ja: 意, zh: 义}}"


@pytest.fixture(scope="module")
def glossary():
    return load_glossary(ROOT)


def test_the_repositorys_glossary_has_the_terms_of_the_field(glossary):
    names = {term.id: term.name for term in glossary.terms}
    assert len(names) >= 80
    assert names["attention"] == {"en": "attention", "ja": "注意機構", "zh": "注意力"}
    assert names["self-attention"] == {"en": "self-attention", "ja": "自己注意", "zh": "自注意力"}
    assert names["gradient"]["ja"] == "勾配" and names["gradient"]["zh"] == "梯度"
    assert names["loss-function"]["ja"] == "損失関数" and names["loss-function"]["zh"] == "损失函数"
    assert names["residual-connection"]["ja"] == "残差接続" and names["residual-connection"]["zh"] == "残差连接"
    assert names["warm-up"]["ja"] == "学習率のウォームアップ"


@pytest.mark.parametrize(("language", "text"), [("ja", "この変圧器では残余接続を使う"), ("zh", "这个变压器使用残余连接")])
def test_wrong_names_are_found_with_the_right_one(glossary, language, text):
    assert [right for _, right in glossary.misuse(text, language)] == ["Transformer", names_of(glossary, "residual-connection")[language]]


def names_of(glossary, name):
    return next(term.name for term in glossary.terms if term.id == name)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "双重量化把每个参数再压缩。各自关注不同的位置，之前训练好的位置编码机制，参数量很小，注意力机制。"),
        ("ja", "二重量子化。以前訓練したモデルの注意機構。自己回帰型ニューラルネットワークの勾配。"),
        ("en", "A Transformer has attention."),
    ],
)
def test_right_sentences_that_hold_a_wrong_name_by_accident_pass(glossary, language, text):
    assert glossary.misuse(text, language) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_glossary_does_not_contradict_itself(glossary, language):
    for term in glossary.terms:
        assert glossary.misuse(f"{term.name[language]}。{term.means[language]}", language) == [], term.id


def test_definitions_leave_everyday_words_alone(glossary):
    english = glossary.definitions("en")
    assert english["self-attention"].startswith("Attention in which")
    assert "value" not in english and "key" not in english
    assert all(len(glossary.definitions(language)) == len(english) for language in LANGUAGES)


def test_occurrences_are_whole_words_first_only_and_the_longest(glossary):
    text = "Transformers use layer\nnormalization; a Transformer's softmaxing is no multi-head attention."
    found = [text[start:end] for start, end, _ in glossary.occurrences(text, "en")]
    assert found == ["Transformers", "layer\nnormalization", "multi-head attention"]
    text = "Transformerの自己注意とKVキャッシュ、自己注意"
    assert [text[start:end] for start, end, _ in glossary.occurrences(text, "ja")] == ["Transformer", "自己注意", "KVキャッシュ"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"net: {{en: Net, ja: 網, {MEANS}", "net.zh: found nothing"),
        ("net: {en: Net, ja: 網, zh: 网}", "net.means: found nothing"),
        (f"net: {{en: Net, ja: 網, zh: 网, never: {{de: [Netz]}}, {MEANS}", "net.never.de: found ['Netz'], expected no such field"),
        (f"net: {{en: Net, ja: 網, zh: 网, never: {{ja: 綱}}, {MEANS}", "net.never.ja: found '綱', expected a list"),
        (f"net: {BASE}\nnets: {BASE}", "nets.en: found 'Net', expected a name that 'net' does not have"),
        (f"net: {BASE}\nbad: {{en: B, ja: 非, zh: 非, never: {{ja: [網]}}, {MEANS}", "bad.never.ja: found '網', expected nothing that"),
        (f"net: {BASE}\nnet: {BASE}", "line 2: found the name 'net' twice"),
    ],
)
def test_a_mistake_is_named(site, text, message):
    site.write(FILE, text)
    with pytest.raises(CatalogueError) as error:
        load_glossary(site.root)
    assert str(error.value).startswith(f"{FILE}: ")
    assert message in str(error.value)
