"""The short tables of docs/results: pages are what the records give, and rows say what records say."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="a source distribution has no benchmarks")


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("record_tables")


def test_the_pages_are_what_the_records_give(tables):
    for name, part in tables.PARTS.items():
        text = (tables.page.RESULTS / f"{name}.md").read_text(encoding="utf-8")
        new = tables.page.updated(text, "record_tables.py", part())
        assert new == text, f"{name}: run python benchmarks/record_tables.py"


def test_a_missed_target_is_told(tables):
    def row(subject, batch, ratio):
        return {"subject": subject, "batch": batch, "ratio": ratio, "quartiles": [0.4, 0.6], "microseconds": 7}

    record = {"rows": [row("ONNX 8x8", 1, 0.751), row("ONNX 8x8", 64, 0.5), row("other", 1, 9), row("other", 64, 9)]}
    assert tables.inference(record).splitlines()[2:] == [
        "| ONNX 8x8 | 0.75 (0.40 - 0.60) | 0.50 (0.40 - 0.60) | 7.0 | 7.0 | 0.65 (missed by 0.10) |",
        "| other | 9.00 (0.40 - 0.60) | 9.00 (0.40 - 0.60) | 7.0 | 7.0 | - |",
    ]


def test_means_are_of_methods_that_every_seed_has(tables):
    def run(method, seed, nll):
        score = {"accuracy": 99.0 + seed, "nll": [nll], "nll_scaled": nll / 2, "ece": [0.01]}
        return {"method": method, "budget": 0.36, "seed": seed, "test": score}

    runs = [run("mode", seed, 0.2) for seed in range(4)] + [run("widths", seed, 0.1 + seed / 10) for seed in range(3)]
    runs += [run("longer", 0, 0.1)]
    assert tables.averages(runs) == [
        ["mode", "100.000", "0.2000", "0.1000", "1.00"],
        ["8 draws, tuned", "100.000", "0.2000 (+0 %)", "0.1000", "1.00"],
    ]


def test_gains_without_training_are_over_uniform_widths_of_the_same_draws(tables):
    def run(method, draw, test, differing):
        at = {
            f"{cost} {b}": {"test": test, "differing": differing} for cost in ("bops", "storage") for b in (2, 3, 4, 8)
        }
        return {"network": "LeNet-5", "draw": draw, "method": method, "rounding": "nearest", "float": 99.0, "at": at}

    runs = [run("loss", 0, 82.0, None), run("loss", 1, 96.0, 2)]
    runs += [run("uniform", draw, test, 0) for draw, test in enumerate((80.0, 90.0, 70.0))]
    rows = tables.post_training_table.tables(runs).splitlines()
    assert rows[2] == f"| uniform | nearest | 3 | - | {' | '.join(['80.00'] * 8)} | 0 |"
    assert rows[3] == f"| loss | nearest | 2 | - | {' | '.join(['+4.00 ± 2.00'] * 8)} | 16 (8 not lowered) |"
    assert rows[-1] == "Float: 99.00 %."
