"""How the manual reads docstrings, links and names of other libraries; a source distribution has no manual."""

import sys
import zlib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not (DOCS / "_extensions").exists(), reason="no manual here")


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS / "_extensions"), *sys.path])


def test_indented_formulas_become_literal_blocks_and_sections_do_not():
    from docstrings import mark_formulas

    text = ["A cost.", "", "    E[c] = sum p * c", "", "Args:", "    p: it is", "", "    >>> 1", "    1"]
    assert mark_formulas(text) == [*text[:2], "::", "", *text[2:]]


def test_several_names_of_one_line_are_joined():
    from docstrings import join_names

    assert join_names("    step, epoch: counted from 0, both") == "    step,epoch: counted from 0, both"
    assert join_names("    a tuple, or None: text") == "    a tuple, or None: text"


def test_attributes_of_a_base_class_are_shown():
    from docstrings import inherited_attributes

    import probq

    lines = inherited_attributes(probq.Quantized)
    assert lines[1] == "Attributes:"
    assert any(line.startswith("    net: ") for line in lines)
    assert inherited_attributes(probq.Layer) == []  # it has its own


@pytest.mark.parametrize(
    ("page", "link", "new"),
    [
        ("features", "[a](../notebooks/02_export.ipynb)", "[a](/notebooks/02_export.ipynb)"),
        ("notebooks/02_export", "[a](../docs/limits.md#x)", "[a](/limits.md#x)"),
        ("results/index", "[a](../limits.md)", "[a](/limits.md)"),
        ("limits", "[a](../README.md)", "[a](there/README.md)"),
        ("limits", "[a](https://example.org/README.md)", "[a](https://example.org/README.md)"),
        ("limits", "[a](missing.md)", "[a](missing.md)"),
    ],
)
def test_links_lead_to_where_the_manual_has_a_file(page, link, new):
    from links import rewrite

    assert rewrite(link, page, "there") == new


def test_a_file_outside_the_manual_is_no_link_without_an_address():
    from links import rewrite

    assert rewrite("see [the licence](../LICENSE)", "limits", None) == "see the licence"


def test_inventories_are_what_sphinx_reads(tmp_path):
    from inventories import mapping

    listed = tmp_path / "names.txt"
    listed.write_text("# names\n\n[torch] https://example.org/\ntorch.Tensor py:class tensors.html#$\n")
    address, path = mapping(listed, tmp_path / "made")["torch"]
    head, body = Path(path).read_bytes().split(b"zlib.\n")
    assert address == "https://example.org/"
    assert head.startswith(b"# Sphinx inventory version 2\n# Project: torch\n")
    assert zlib.decompress(body) == b"torch.Tensor py:class 1 tensors.html#$ -\n"
