import pytest

from spqlm.names import fenced, markdown, markdown_table, paragraph, visible


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain, ünïcode 雪 👩‍🔬", "plain, ünïcode 雪 👩‍🔬"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202etxt.exe", "abc\\u202etxt.exe"),
        ("not utf-8: \udcff", "not utf-8: \\udcff"),
        ("\0", "\\x00"),
    ],
)
def test_what_acts_on_a_terminal_becomes_visible(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text, written",
    [
        ("model.layers.0.q_proj", "model.layers.0.q_proj"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("*a* _b_ `c` [d](e) ~~f~~", "\\*a\\* \\_b\\_ \\`c\\` \\[d\\](e) \\~\\~f\\~\\~"),
        ("$\\frac$ | \\1", "\\$\\\\frac\\$ \\| \\\\1"),
        ("> no quote", "&gt; no quote"),
        ("https://x www.y", "https\\://x www\\.y"),
        ("", ""),
    ],
)
def test_a_line_of_markdown_is_the_text_and_nothing_else(text, written):
    assert markdown(text) == written


@pytest.mark.parametrize(
    "text, written",
    [
        ("# not a\n# heading", "\\# not a # heading"),
        ("- no list", "\\- no list"),
        ("1. no list", "1\\. no list"),
        ("1.5 GB at 3:1", "1.5 GB at 3:1"),
        ("-", "\\-"),
    ],
)
def test_a_paragraph_is_no_list_or_heading(text, written):
    assert paragraph(text) == written


def test_a_table_has_the_cells_that_were_given():
    written = markdown_table(["a|b", "-"], [["<x>", "-"]])
    assert written == "| a\\|b | - |\n| --- | --- |\n| &lt;x&gt; | - |"


def test_a_fence_is_longer_than_any_in_the_text():
    assert fenced("a\n````\nb\x1b", "yaml") == "`````yaml\na\n````\nb\\x1b\n`````"
