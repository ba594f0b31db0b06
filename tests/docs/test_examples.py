"""The examples of the pages on ideas do what they show."""

import doctest
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "ideas").glob("*.md"))  # a source distribution has none
FENCE = "```\n"  # the end of an example, which doctest would take for output


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_ideas(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace(FENCE, "\n")
    test = doctest.DocTestParser().get_doctest(text, {}, page.stem, str(page), 0)
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert found.failed == 0
