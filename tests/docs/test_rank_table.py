"""The tables of predictors that rank choices of widths."""

import importlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="a source distribution has no benchmarks")


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("rank_table")


def true(seed, losses, network="a", limit=0.5, epochs=1):
    return {
        "kind": "truth",
        "network": network,
        "limit": limit,
        "seed": seed,
        "float_epochs": epochs,
        "losses": losses,
        "float": 0.25 * seed,
    }


def says(seed, network="a", **values):
    rows = {name: {"0.5": row} for name, row in values.items()}
    return {"kind": "predictor", "network": network, "seed": seed, "float_epochs": 1, "values": rows}


def rows(text, start):
    lines = text.split(start)[1].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


RECORDS = [
    true(1, [3.0, 4.0, 5.0]), true(0, [1.0, 2.0, 6.0]),
    says(1, good=[1.0, 2.0, 3.0], tied=[1.0, 1.0, 2.0], none=[7.0, 7.0, 7.0]),
    says(0, good=[1.0, 3.0, 2.0], tied=[0.0, 0.0, 9.0], none=[0.0, 0.0, 0.0]),
]  # fmt: skip


def test_concordant_pairs_minus_discordant_ones_are_counted(table):
    generator = np.random.default_rng(0)
    values, losses = generator.normal(size=(2, 9))
    signs = [
        np.sign(values[i] - values[j]) * np.sign(losses[i] - losses[j]) for i, j in combinations(range(len(values)), 2)
    ]
    assert table.tau(values, losses) == pytest.approx(np.mean(signs), abs=1e-12)
    assert table.tau(np.zeros(9), losses) == 0


def test_the_truth_has_its_range_and_its_ceiling(table):
    # means 2, 3, 5.5; both seeds order the choices alike
    assert rows(table.table(RECORDS), "Truth, in nats:") == [
        ["a", "0.5", "3", "2", "0.125", "2.000", "3.000", "5.500", "1.00 (1.00, 1.00)"]
    ]


def test_the_ceiling_leaves_the_own_seed_out(table):
    losses = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [30.0, 20.0, 10.0]])
    # against the means of the others: 16.5, 11, 5.5; 15.5, 11, 6.5; 2, 2, 2
    assert table.ceiling(losses[:2]) == [-1.0, -1.0]
    assert table.ceiling(losses)[:2] == [-1.0, 1.0]


def test_predictors_stand_in_the_order_of_their_means(table):
    found = rows(table.table(RECORDS), "each seed:")
    # good at seed 0: two pairs of three agree; tied: both untied pairs agree, tau-b 2 / sqrt(2 * 3)
    assert found == [
        ["tied", "0.82 (0.82, 0.82)", "0.82"],
        ["good", "0.67 (0.33, 1.00)", "0.67"],
        ["none", "0.00 (0.00, 0.00)", "0.00"],
    ]


def test_a_favourite_that_is_shared_counts_with_its_mean(table):
    found = rows(table.table(RECORDS), "over seeds:")
    assert found == [["good", "2.000", "0.00"], ["tied", "2.500", "0.50"], ["none", "3.500", "1.50"]]


def test_a_predictor_that_lacks_a_cell_comes_last(table):
    records = [*RECORDS, *(true(s, [1.0, 2.0, 3.0], "b") for s in (0, 1)), says(0, "b", none=[1.0, 2.0, 3.0])]
    assert [row[-1] for row in rows(table.table(records), "each seed:")] == ["0.50", "-", "-"]


def test_each_length_of_the_float_training_has_tables_of_its_own(table):
    text = table.table([*RECORDS, true(0, [5.0, 6.0, 9.0], epochs=7)])
    assert text.index("of 1 epochs") < text.index("| good |") < text.index("of 7 epochs")
    assert rows(text, "7 epochs.** Truth, in nats:") == [
        ["a", "0.5", "3", "1", "0.000", "5.000", "6.000", "9.000", "-"]
    ]
