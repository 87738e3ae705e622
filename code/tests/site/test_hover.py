from rundoku.show.store import ROOT
from rundoku.site.glossary import load_glossary
from rundoku.site.hover import define


def test_only_the_first_use_in_prose_carries_the_meaning():
    made = define("<h2>self-attention</h2><p>Self-attention, then self-attention.</p><p>self-attention</p>", load_glossary(ROOT), "en")
    assert made.startswith("<h2>self-attention</h2><p><abbr title=")
    assert made.count("<abbr") == 1


def test_japanese_terms_are_found_inside_a_sentence():
    made = define("<p>これは自己注意の計算である。</p>", load_glossary(ROOT), "ja")
    assert ">自己注意</abbr>の計算" in made


def test_prose_goes_on_after_a_formula():
    made = define('<p><span class="arithmatex">x</span> then self-attention</p>', load_glossary(ROOT), "en")
    assert "then <abbr" in made


def test_code_links_formulas_and_values_stay_as_they_are():
    page = (
        '<p><code>self-attention</code> <a href="#">self-attention</a> <span class="arithmatex">self-attention</span> '
        '<span class="value">self-attention</span></p><div>self-attention</div>'
    )
    assert define(page, load_glossary(ROOT), "en") == page


def test_attributes_and_comments_are_no_text():
    page = '<p title="自己注意 > 層正規化"><!-- 層正規化 --><strong>自己注意</strong></p>'
    made = define(page, load_glossary(ROOT), "ja")
    assert made.startswith('<p title="自己注意 > 層正規化"><!-- 層正規化 --><strong><abbr')
    assert made.count("<abbr") == 1
