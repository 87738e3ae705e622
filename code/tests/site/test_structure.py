import pytest

from rundoku.site.structure import differences, marks

ENGLISH = """---
title: A
---
# A {#top}

The point $x$, `#!value n:,` and [link](../b/index.md).

## Why {#why}

Because of $a$ and $b$ and $a$.[^n] See `#!paper size`.

$$
y = \\text{if } x
$$

!!! warning "Careful"
    text

```python exec="on" session="s"
--8<-- "s/note.py:one"
```

```text title="Words"
free text
```

| a | b |
|---|---|
| 1 | 2 |

![alt](x.svg)

[^n]: A note.
"""
SAME = """---
title: A
---
# 甲 {#top}

[链接](../b/index.md)、`#!value n:,`、$x$。

## 何故 {#why}

`#!paper size`。$b$と$a$と$a$。[^n]

$$
y = \\text{もし} x
$$

!!! warning "注意"
    文
    二行

```python exec="on" session="s"
--8<-- "s/note.py:one"
```

```text title="言葉"
自由な文
```

| あ | い |
|---|---|
| 1 | 2 |

![代替](x.svg)

[^n]: 注。
"""


def test_a_translation_may_reorder_a_sentence_and_translate_words():
    assert differences(ENGLISH, SAME, "index.en.md") == []


def test_every_kind_of_mark_is_seen_with_its_line():
    assert [(mark.kind, mark.line) for mark in marks(ENGLISH)] == [
        ("heading", 4),
        ("formula", 6),
        ("value", 6),
        ("link", 6),
        ("heading", 8),
        ("formula", 10),
        ("formula", 10),
        ("formula", 10),
        ("paper", 10),
        ("reference to a footnote", 10),
        ("display formula", 12),
        ("admonition", 16),
        ("fence", 19),
        ("fence", 23),
        ("table", 27),
        ("figure", 31),
        ("footnote", 33),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("{#why}", "{#warum}", 8, "heading `## {#warum}` stands where index.en.md:8 has `## {#why}`"),
        ("## 何故", "### 何故", 8, "heading `### {#why}` stands where index.en.md:8 has `## {#why}`"),
        ("$b$と$a$と$a$", "$b$と$a$", 8, "formula `a` of index.en.md:10 is missing here"),
        ("$b$と$a$と$a$", "$b$と$a$と$a$と$a$", 10, "formula `a` is not in index.en.md"),
        ("$b$と", "$c$と", 10, "formula `c` stands where index.en.md:10 has `b`"),
        ("n:,", "n:.2f", 6, "value `#!value n:.2f` stands where index.en.md:6 has `#!value n:,`"),
        ("`#!paper size`。", "", 8, "paper `#!paper size` of index.en.md:10 is missing here"),
        ("../b/index.md", "../c/index.md", 6, "link `../c/index.md` stands where index.en.md:6 has `../b/index.md`"),
        ("y = ", "z = ", 12, "display formula `z = \\text{…} x` stands where index.en.md:12 has `y = \\text{…} x`"),
        ("!!! warning", "!!! note", 16, "admonition `!!! note` stands where index.en.md:16 has `!!! warning`"),
        ("note.py:one", "note.py:two", 20, "has `python exec="),
        ('session="s"', 'session="t"', 20, "has `python exec="),
        ("| 1 | 2 |\n", "", 27, "table `2 columns, 0 rows` stands where index.en.md:27 has `2 columns, 1 rows`"),
        ("![代替](x.svg)", "", 1, "figure `x.svg` of index.en.md:31 is missing here"),
        ("\n[^n]: 注。", "", 1, "footnote `n` of index.en.md:33 is missing here"),
        ("$a$。[^n]", "$a$。", 8, "reference to a footnote `n` of index.en.md:10 is missing here"),
    ],
)
def test_a_difference_names_both_places(old, new, line, message):
    assert SAME.count(old) >= 1
    faults = differences(ENGLISH, SAME.replace(old, new, 1), "index.en.md")
    assert len(faults) == 1, faults
    found_line, found = faults[0]
    assert message in found and "index.en.md" in found
    assert abs(found_line - line) <= 1, (found_line, found)


def test_a_missing_fence_in_the_middle_is_one_fault():
    def page(names):
        return "\n".join(f'```python exec="on"\n--8<-- "s/note.py:{name}"\n```\n' for name in names)

    (fault,) = differences(page("abcd"), page("acd"), "index.en.md")
    assert fault == (1, 'fence `python exec="on" ⏎ --8<-- "s/note.py:b"` of index.en.md:5 is missing here')


def test_two_long_fences_that_differ_late_are_cut_to_where_they_differ():
    body = "\n".join(f"a_long_name_number_{letter} = None" for letter in "abcdefgh")
    (fault,) = differences(f"```python\n{body}\nx = 1\n```", f"```python\n{body}\nx = 2\n```", "index.en.md")
    assert "x = 2" in fault[1] and "x = 1" in fault[1] and len(fault[1]) < 300
