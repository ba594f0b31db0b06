"""The examples of pages that are not executed when the manual is built do what they show."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"  # a source distribution has none
PAGES = sorted([*(DOCS / "ideas").glob("*.md"), *(DOCS / "guides").glob("post_training.md")])
FENCE = "```\n"  # the end of an example, which doctest would take for output


@pytest.mark.filterwarnings("ignore:the posterior was never fitted", "ignore:.*energies of")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a file
    text = page.read_text(encoding="utf-8").replace(FENCE, "\n")
    test = doctest.DocTestParser().get_doctest(text, {}, page.stem, str(page), 0)
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert found.failed == 0
