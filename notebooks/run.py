"""Execute the notebooks; the first cell that raises fails the run.

    python notebooks/run.py [--write] [NOTEBOOK ...]

With `--write` the outputs are stored in the notebooks, without what went to stderr. With the environment variable
`PROBQ_NOTEBOOKS_SHORT=1` each notebook is shortened first by the replacements in its own metadata, as in
`"short": {"epochs=30": "epochs=1"}`; a replacement that matches nothing fails the run, so that none goes stale.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SECONDS_PER_CELL = 1200


def shorten(notebook: nbformat.NotebookNode) -> None:
    """Apply the notebook's own replacements to its code cells, in place.

    Raises:
        ValueError: if a replacement matches no code cell.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in notebook.metadata.get("short", {}).items():
        if not any(old in cell.source for cell in cells):
            raise ValueError(f"the replacement of {old!r} matches no cell; correct it in the notebook's metadata")
        for cell in cells:
            cell.source = cell.source.replace(old, new)


def execute(path: Path, *, short: bool, write: bool) -> None:
    """Execute one notebook in an empty temporary folder.

    Raises:
        CellExecutionError: if a cell raises.
        ValueError: if a replacement matches no code cell.
    """
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if short:
        shorten(notebook)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    if write:
        drop_stderr(notebook)
        nbformat.write(notebook, path)


def drop_stderr(notebook: nbformat.NotebookNode) -> None:
    """Remove the outputs that warnings and progress bars left, in place: they tell of this machine, not of probq."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main() -> int:
    """Execute the named notebooks, or all in this folder; return the number that failed."""
    parser = argparse.ArgumentParser(description="Execute the notebooks.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in this folder")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    options = parser.parse_args()
    short = os.environ.get("PROBQ_NOTEBOOKS_SHORT", "") not in {"", "0"}
    if short and options.write:
        parser.error("outputs of shortened notebooks are not stored: unset PROBQ_NOTEBOOKS_SHORT")
    notebooks = options.notebooks or sorted(Path(__file__).parent.glob("*.ipynb"))
    if not notebooks:
        parser.error("no notebooks found")

    failed = 0
    for path in notebooks:
        start = time.perf_counter()
        try:
            execute(path, short=short, write=options.write)
        except (CellExecutionError, ValueError) as error:
            failed += 1
            print(f"FAILED {path.name}\n{error}", file=sys.stderr, flush=True)
        else:
            print(f"{path.name}: {time.perf_counter() - start:.0f} s{' (shortened)' if short else ''}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
