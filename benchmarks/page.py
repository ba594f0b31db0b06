"""Parts of pages in docs/results that a script makes from records, between two comments that name the script."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def wrapped(text: str) -> str:
    """A paragraph in lines of 120 characters; none begins with a percent sign, which would make it a comment."""
    held = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(held, 120, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def updated(text: str, script: str, part: str) -> str:
    """A text with what stands between a script's comments replaced."""
    start, end = (f"<!-- made by {script}: {place} -->" for place in ("start", "end"))
    before, rest = text.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{part}\n\n{end}{after}"


def main(description: str | None, script: str, parts: Mapping[str, Callable[[], str]]) -> None:
    """Write a script's part of each page, by the page's name, or check them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page is not what would be written")
    check = parser.parse_args().check
    for name, generated in parts.items():
        path = RESULTS / f"{name}.md"
        text = path.read_text(encoding="utf-8")
        new = updated(text, script, generated())
        if check and new != text:
            raise SystemExit(f"docs/results/{name}.md is not what the records say: run python benchmarks/{script}")
        path.write_text(new, encoding="utf-8")
