import html
import re
import xml.etree.ElementTree as ElementTree

import pytest

from rundoku.site import formulas
from rundoku.site.snippets import NoteError


def page(tex: str, tag: str = "span") -> str:
    """Return what arithmatex makes of a formula."""
    left, right = (r"\(", r"\)") if tag == "span" else ("\\[\n", "\n\\]")
    return f'<p>before <{tag} class="arithmatex">{left}{html.escape(tex, quote=False)}{right}</{tag}> after</p>'


def place(tex: str) -> str:
    return f"notes/x/index.en.md:7 (en) {tex}"


@pytest.mark.parametrize(
    "tex",
    [
        r"\frac{QK^\top}{\sqrt{d_k}}", r"a < b \& c", r"\operatorname*{argmax}_x f(x)", r"\mathcal{L} = -\sum_{i=1}^N \log p_\theta(x_i)",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\lVert x \rVert_2^2",
        r"\mathbb{E}_{x \sim p}[\mathrm{softmax}(x)]", r"\text{if } x \ge 0", r"O(n^2 \cdot d)", r"\hat{y}, \tilde{x}, \bar{z}, \mathbf{W}",
        r"\underbrace{a + b}_{\text{sum}}", r"\left( \frac{1}{2} \right)", r"x \in \mathbb{R}^{n \times d}",
        r"\begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("tag", ["span", "div"])
def test_a_formula_becomes_whole_mathml(tex: str, tag: str) -> None:
    made = formulas.typeset(page(tex, tag), place)
    (formula,) = re.findall(r"<math.*?</math>", made, re.S)
    assert list(ElementTree.fromstring(re.sub(r"&(?!lt|gt|amp)\w+;", lambda entity: html.unescape(entity[0]), formula)).iter())
    assert "merror" not in formula and "arithmatex" not in made and "\\" not in made
    assert ('display="block"' in formula) == (tag == "div") == ('<div class="formula" tabindex="0">' in made)
    assert made.startswith("<p>before ") and made.endswith(" after</p>")


@pytest.mark.parametrize("tex", [r"\frac{a}{b", r"\nosuchcommand{x}", r"a_b_c", r"\begin{aligned} a", r"\left( x", "x }"])
def test_bad_tex_is_an_error_that_names_the_formula(tex: str) -> None:
    with pytest.raises(NoteError) as caught:
        formulas.typeset(page("x") + page(tex), place)
    assert str(caught.value).startswith(place(tex)) and repr(tex) in str(caught.value)


def test_formulas_do_not_know_of_one_another() -> None:
    alone = formulas.typeset(page(r"\alpha"), place)
    assert formulas.typeset(page(r"\alpha") * 2, place) == alone * 2


def test_the_search_index_leaves_formulas_out() -> None:
    assert formulas.hide_from_search(page("x")).count('data-search-exclude=""') == 1
    assert "<math" in formulas.typeset(formulas.hide_from_search(page("x")), place)
