"""Whatever a card, a docstring or the ledger says comes out of the site as it was written."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.docs.markdown import escape, fenced, prose, table

markdown = pytest.importorskip("markdown", reason="rendering pages needs the docs extra")

EXTENSIONS = ["admonition", "attr_list", "tables", "pymdownx.highlight", "pymdownx.superfences"]
texts = st.text(st.sampled_from("ab1 .,:;-+>*_`[](){}|#!<&\"'\\=~^/éß×→$%@"), min_size=1, max_size=30).filter(str.strip)


def shown(source: str) -> str:
    """What a reader sees, spaces joined."""
    page = markdown.markdown(source, extensions=EXTENSIONS)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


@given(texts)
def test_text_comes_out_as_it_was_written(text: str) -> None:
    plain = " ".join(text.split())
    assert shown(escape(text)) == plain
    assert shown(f"- {escape(text)}\n- second\n") == f"{plain} second"
    assert shown(f"before {escape(text)}") == f"before {plain}"


@given(st.lists(texts, min_size=2, max_size=2))
def test_cells_come_out_as_they_were_written(cells: list[str]) -> None:
    first, second = (" ".join(cell.split()) for cell in cells)
    assert shown(table(["a", "b"], [list(map(escape, cells))])) == f"a b {first} {second}"


def test_code_spans_stay_code_and_known_words_lead_somewhere() -> None:
    text = "Use `hip`, not a_b_c or `x|y` <b>. 1. `2`"
    page = markdown.markdown(prose(text, {"hip": "hip.md"}.get), extensions=EXTENSIONS)
    assert '<a href="hip.md"><code>hip</code></a>' in page
    assert "<code>x|y</code>" in page
    assert shown(prose(text)) == text.replace("`", "")
    assert shown(fenced("print(1)")) == "print(1)"
