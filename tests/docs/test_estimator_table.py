"""The tables of estimators in docs/results: what a record says is what a row says."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="a source distribution has no benchmarks")


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("estimator_table")


def fit(seed, **changes):
    record = {"kind": "fit", "model": "a", "estimator": "e", "seed": seed, "steps": 5, "draws": 3}
    return {**record, "widths": 0.01, "codes": 0.004, "elbo": -10.05, "best": -10.0, **changes}


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(("| net", "|---"))]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_is_what_the_records_say(table):
    text = (table.page.RESULTS / "estimators.md").read_text(encoding="utf-8")
    assert table.page.updated(text, "estimator_table.py", table.generated()) == text, (
        "run python benchmarks/estimator_table.py"
    )


def test_the_worst_seed_counts(table):
    found = rows(table.fits([fit(0), fit(1, codes=0.015), fit(0, model="b", elbo=-10.2), fit(2, widths=0.02)]))
    assert found == [
        ["a", "e", "3", "5 x 3", "0.0200", "0.0150", "0.500", "yes"],
        ["b", "e", "1", "5 x 3", "0.0100", "0.0040", "2.000", "no"],
    ]


def test_biases_are_relative_to_the_exact_gradient(table, tmp_path):
    part = {"bias": 0.5, "error": 0.1, "exact": 2.0, "deviation": 3.0}
    record = {"kind": "bias", "model": "a", "estimator": "e", "draws": 9, "gates": part, "codes": {**part, "bias": 1.0}}
    (tmp_path / table.RECORDS).write_text(json.dumps([record, fit(0)]))
    text = table.generated(tmp_path)
    assert ["a", "e", "9", "25 ± 5 (150)", "50 ± 5 (150)"] in rows(text)
    assert max(map(len, text.splitlines())) <= 120
