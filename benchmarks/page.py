"""Parts of README.md that a script makes from records, between two comments that name it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

README = Path(__file__).parent / "README.md"


def updated(text: str, script: str, part: str) -> str:
    """A text with what stands between a script's comments replaced."""
    start, end = (f"<!-- made by {script}: {place} -->" for place in ("start", "end"))
    before, rest = text.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{part}\n\n{end}{after}"


def main(description: str | None, script: str, generated: Callable[[], str]) -> None:
    """Write a script's part, or check it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if README.md is not what would be written")
    check = parser.parse_args().check
    text = README.read_text()
    new = updated(text, script, generated())
    if check and new != text:
        raise SystemExit(f"benchmarks/README.md is not what the records say: run python benchmarks/{script}")
    README.write_text(new)
