from rundoku.site import markdown

NOTE = """---
title: "A title"
description: costs 12 francs
---
# A title {#top}

The point, `code 7` and $x_1 + 2$ and \\$5.

## Why it *matters* {#why}

```python exec="on" source="" session='lora' quiet
--8<-- "lora/note.py:setup"
# not a heading
```

!!! warning "Careful"
    ~~~~ text
    ```
    inner
    ```
      kept
    ~~~~

    ### Not one either

$$
L = 6ND
$$

### Deeper { .small #deeper }
<!-- 42 -->
``a `tick` 3`` and `#!value trainable:,` end
## No name ##
"""


def test_fences_have_language_options_body_and_line():
    first, second = markdown.fences(NOTE)
    assert (first.language, first.options, first.line) == ("python", {"exec": "on", "source": "", "session": "lora", "quiet": ""}, 11)
    assert first.body == '--8<-- "lora/note.py:setup"\n# not a heading\n'
    assert (second.language, second.indent, second.line, second.closed) == ("text", "    ", 17, True)
    assert second.body == "```\ninner\n```\n  kept\n"


def test_a_fence_without_end_says_so_and_swallows_the_rest():
    (fence,) = markdown.fences("a\n\n````\n```\nb")
    assert (fence.closed, fence.body, fence.line) == (False, "```\nb\n", 3)


def test_code_between_backticks_on_one_line_is_no_fence():
    assert markdown.fences("```not a fence``` here\n") == []


def test_a_braced_info_string_is_read_too():
    (fence,) = markdown.fences('```{.python title="a b" hl_lines=3}\n```\n')
    assert (fence.language, fence.options) == ("python", {"title": "a b", "hl_lines": "3"})


def test_headings_have_level_title_id_and_line():
    found = [(h.level, h.title, h.id, h.line) for h in markdown.headings(NOTE)]
    assert found == [
        (1, "A title", "top", 5),
        (2, "Why it *matters*", "why", 9),
        (3, "Deeper", "deeper", 30),
        (2, "No name", "", 33),
    ]


def test_prose_keeps_every_line_and_column_and_loses_all_that_is_not_prose():
    text = markdown.prose(NOTE)
    assert [len(line) for line in text.split("\n")] == [len(line) for line in NOTE.split("\n")]
    for gone in ("francs", "code 7", "x_1", "8<", "inner", "6ND", "42", "tick", "value"):
        assert gone not in text, gone
    assert text.split("\n")[6].startswith("The point,")
    assert text.split("\n")[31].strip() == "and                       end"


def test_spans_and_formulas_are_found_with_their_lines():
    assert [(span.text, span.line) for span in markdown.code_spans(NOTE)] == [
        ("code 7", 7),
        ("a `tick` 3", 32),
        ("#!value trainable:,", 32),
    ]
    found = [(formula.text, formula.line, formula.block) for formula in markdown.formulas(NOTE)]
    assert found == [("x_1 + 2", 7, False), ("L = 6ND", 26, True)]


def test_a_dollar_pair_does_not_reach_across_paragraphs_or_spaces():
    assert markdown.formulas("costs $ 5 and $ 6\n\na $x\n\ny$ b") == []


def test_sections_run_to_the_next_heading_with_an_id():
    found = markdown.sections(NOTE)
    assert list(found) == ["top", "why", "deeper"]
    assert found["top"].startswith("---\ntitle") and "The point" in found["top"]
    assert "6ND" in found["why"] and "Deeper" not in found["why"]
    assert "No name" in found["deeper"]


def test_trailing_spaces_and_blank_lines_do_not_change_a_section():
    loose = NOTE.replace("francs\n", "francs  \n").replace("$$\n\n### Deeper", "$$\n\n\n### Deeper")
    assert markdown.sections(loose) == markdown.sections(NOTE)
