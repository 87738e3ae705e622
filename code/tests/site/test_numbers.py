import pytest

from rundoku.site.numbers import typed_numbers

TITLES = ["An Image is Worth 16x16 Words", "Fast and Simplex: 2-Simplicial Attention", "DeepNet: Scaling Transformers to 1,000 Layers"]


def found(text, language):
    return [number for _, number in typed_numbers(text, language, TITLES)]


@pytest.mark.parametrize(
    ("language", "text", "numbers"),
    [
        ("en", "It has 65 layers and 4.7 million parameters, 10,000 times fewer.", ["65", "4.7", "10,000"]),
        ("en", "A gain of 37% over a rank-4 update at 3x the cost.", ["37", "4", "3"]),
        ("en", "Trained on 2048 tokens for 2000 steps, 2000-token windows.", ["2048", "2000", "2000"]),
        ("en", "Table 4 says 37% and Tables 2 and 3, 10% more.", ["37", "10"]),
        ("en", "Section 3 shows 5 of them. The 1st is best.", ["5", "1"]),
        ("en", "GPT-3 has 175B parameters, the 7B model a context of 2048.", ["175", "7", "2048"]),
        ("en", "| a | b |\n|---|---|\n| 12 | x |", ["12"]),
        ("en", '!!! note "All 12 of them"\n    text 7', ["12", "7"]),
        ("en", "1. first\n2. second has 3", ["3"]),
        ("en", "minus -0.5 or −3", ["0.5", "3"]),
        ("en", "[12 heads](page3.md)", ["12"]),
        ("ja", "層は65あり、２倍の速さで、第3層が1つ。2048トークン。", ["65", "2", "3", "1", "2048"]),
        ("ja", "２０１７年に４．７倍になった。", ["4.7"]),
        ("ja", "代表3例", ["3"]),
        ("zh", "共有65层，第12层快了３％，2048个词元。", ["65", "12", "3", "2048"]),
        ("zh", "方程5个，公式好10倍", ["5", "10"]),
    ],
)
def test_typed_numbers_are_found(language, text, numbers):
    assert found(text, language) == numbers


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "In 2017, the 2010s, (Vaswani et al., 2017) and ICLR 2022; since 1997."),
        ("en", "GPT-2, GPT-3's, T5-11B, Llama 2, SmolLM2-135M, H100, fp32, sm_90, CIFAR-10, Python 3.11, CC BY 4.0."),
        ("en", "NF4, top-1, 2D, 16-bit, x86-64, Llama 2 70B, GPT-3 175B, RTX 4090, IEEE 754, ℓ2, β1, arxiv.org/abs/2106.09685."),
        ("ja", "図 3、(3)式、表4の第2行。"),
        ("zh", "第4.2小节，表4第2行第3列。"),
        ("en", "Eq. 5, Eqs. 5–7, §3.2, Table 4, Tables 2 and 3, Fig. 3b, Alg. 1, Appendix A.1, Theorem 2."),
        ("en", "Section 3.2.1, Eq. (5), page 12, p. 7, equation 3 and figure 4."),
        ("en", "`code 5`, $x_1 = 3$, $$y = 4$$ and [two](../x-2/index.md#a3) <https://a.b/3> {#id4 .x5}"),
        ("en", "---\ntitle: 5 things\n---\n# Scaling to 1,000 Layers {#top}\n\n1. one\n2. two\n\n[^1]: a footnote, see[^1]\n"),
        ("en", '```python\nx = 3\n```\n<!-- 42 -->\n<div data-x="3">two &#8217; words</div>\n'),
        ("en", "See DeepNet: Scaling Transformers to 1,000 Layers, 2-simplicial attention and arXiv:2106.09685, on 2026-11-21."),
        ("ja", "2017年、（2017）、ICLR 2022、図3、表4、式5、式(5)、第3.2節、3.2節、付録A.1、定理2、アルゴリズム1、12ページ、図3・4。"),
        ("ja", "GPT-2とLlama 2、SmolLM2-135M、8ビット、一つ、二倍。"),
        ("zh", "2017年，图3、表4、式5、公式(5)、第3.2节、附录A.1、定理2、算法1、第12页，GPT-2，8比特，两倍。"),
    ],
)
def test_names_references_years_and_what_is_no_prose_pass(language, text):
    assert found(text, language) == []


def test_the_line_is_that_of_the_number():
    assert typed_numbers("---\na: 1\n---\n\nnone\n\nhere 7\n", "en") == [(7, "7")]
