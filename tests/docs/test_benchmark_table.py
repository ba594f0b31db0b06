"""The tables of accuracies in docs/results are those that the committed records give."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="a source distribution has no benchmarks")

RUN = {
    "method": "probq", "budget": 0.36, "uniform": None, "profile": "dyadic", "rule": "PID", "search": 0.5, "epochs": 3,
    "float_epochs": 2, "temperature": 0.001, "float_test": 99.5, "differing": 0, "versions": {"torch": "2"},
    "machine": "one",
}  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("table")


def written(folder, *changes):
    lines = [json.dumps(RUN | change) for change in changes]
    (folder / "results_mnist_lenet5.jsonl").write_text("\n".join(lines) + "\n")


def test_the_page_is_what_the_records_give(table):
    text = (table.page.RESULTS / "accuracy.md").read_text(encoding="utf-8")
    assert table.page.updated(text, "table.py", table.generated()) == text, "run python benchmarks/table.py"


def test_a_row_has_the_mean_and_the_standard_deviation_of_a_sample(table, tmp_path):
    runs = [{"seed": s, "integer_test": 99 + t, "percent": 0.3 + t / 10} for s, t in enumerate((0.0, 0.3, 0.6))]
    written(tmp_path, *runs)
    row = next(line for line in table.generated(tmp_path).splitlines() if line.startswith("| probq, PID"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == [
        "probq, PID, learned widths", "0.36 %", "3", "**99.30 ± 0.30**", "99.50 ± 0.00", "0.3000 - 0.3600", "yes", "0",
        "2 + 3", "dyadic, 0.001",
    ]  # fmt: skip


def test_options_of_a_run_are_named(table, tmp_path):
    written(
        tmp_path,
        {"seed": 0, "integer_test": 99.0, "percent": 0.3, "search": 0.25, "evaluations": 0, "own": {"spend": 0.9}},
    )
    assert "| probq, PID, learned widths, search 0.25, evaluations 0, spend 0.9 | 0.36 % |" in table.generated(tmp_path)


def test_one_run_above_its_limit_is_counted(table, tmp_path):
    written(
        tmp_path,
        {"seed": 0, "integer_test": 99.0, "percent": 0.36},
        {"seed": 1, "integer_test": 99.0, "percent": 0.3600001},
    )
    assert "| no (1 of 2 over) |" in table.generated(tmp_path)


def test_runs_of_other_settings_and_methods_have_rows_of_their_own(table, tmp_path):
    simulated = {"method": "Brevitas", "uniform": [2, 2], "budget": None, "simulated_test": 98.0, "percent": 0.52}
    written(
        tmp_path,
        {"seed": 0, **simulated, "machine": "two"},
        {"seed": 0, "integer_test": 99.0, "percent": 0.3},
        {"seed": 1, "integer_test": 97.0, "percent": 0.3, "epochs": 4},
        {"seed": 2, "percent": 0.3},  # the test set stayed closed
    )
    text = table.generated(tmp_path)
    starts = [" ".join(line.split("|")[1:5]) for line in text.splitlines() if line.startswith(("| probq", "| Brev"))]
    assert [" ".join(start.split()) for start in starts] == [
        "probq, PID, learned widths 0.36 % 1 **99.00**",
        "probq, PID, learned widths 0.36 % 1 **97.00**",
        "Brevitas 2/2 1 **98.00** (simulated)",
    ]
    assert "Machine: one; two. Versions: torch 2." in text


def test_a_changed_table_is_noticed_and_the_text_around_it_is_kept(table, tmp_path):
    written(tmp_path, {"seed": 0, "integer_test": 99.0, "percent": 0.3})
    marks = [f"<!-- made by table.py: {place} -->" for place in ("start", "end")]
    part = table.generated(tmp_path)
    text = table.page.updated(f"before {marks[0]} old {marks[1]} after", "table.py", part)
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert table.page.updated(text, "table.py", part) == text
    assert table.page.updated(text.replace("99.00", "99.90"), "table.py", part) == text
