"""What a page of the manual says is also shown: a line that begins with a percent sign would be a comment."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="a source distribution has no manual")


def test_no_line_is_taken_for_a_comment_or_a_list():
    for page in DOCS.rglob("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        lost = re.findall(r"^ *%.*", text, re.MULTILINE)
        lost += re.findall(r"(?<=\w\n)[-+] .*", text)  # a paragraph that is broken before a sum's sign
        assert not lost, f"{page.name}: {lost}"


def test_a_paragraph_keeps_numbers_and_percent_signs_together(monkeypatch):
    monkeypatch.syspath_prepend(DOCS.parent / "benchmarks")
    import page

    text = page.wrapped("a share of 12.5 % " * 40)
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"^%", text, re.MULTILINE)
    assert " ".join(text.split()) == ("a share of 12.5 % " * 40).strip()
