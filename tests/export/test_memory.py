"""The files of a memory folder alone compute the model's integers, and damage to any of them is found."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_models import inputs, models, one_layer
from networks import NETWORKS, PLANS, lowered

import probq
from probq import export
from probq.export.memory import run, thresholds, vector_inputs, write
from probq.export.memory.reader import OPERATIONS
from probq.export.memory.words import read_words, width_of, write_words
from probq.integer import Node


@given(models(moves=True))
@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
def test_random_models(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("memory") / "m"
    known = all(node.op in OPERATIONS and not node.attributes.get("transposed") for node in model.nodes)
    if not known:
        with pytest.raises(probq.ProbqError, match="has no memory form"):
            write(model, path)
        return
    write(model, path)
    x = inputs(model)
    np.testing.assert_array_equal(run(path, x), model.run(x))


@pytest.mark.parametrize("plan", PLANS)
def test_a_lowered_network_does_not_differ(plan, tmp_path):
    (model,), x = lowered(NETWORKS["signed mlp"], PLANS[plan])
    write(model, tmp_path / "m")
    report = export.verify(model, tmp_path / "m", x)
    assert (report.target, report.compared, report.differing) == ("memory", len(x), 0)
    export.certify(model, tmp_path / "m", report)
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["bytes"] == sum(file.stat().st_size for file in (tmp_path / "m").iterdir())


@pytest.mark.parametrize("file", ["weight", "bias", "add", "threshold", "vector"])
def test_a_changed_word_is_found(file, tmp_path):
    model = one_layer(np.arange(12).reshape(3, 4) - 5, [1, -2, 3], 3, 15)
    write(model, tmp_path / "m")
    (path,) = (tmp_path / "m").glob(f"*_{'q' if file in ('add', 'threshold') else 'fc'}.{file}.mem")
    lines = path.read_text().split()
    lines[-1] = f"{int(lines[-1], 16) ^ 1:0{len(lines[-1])}x}"
    path.write_text("\n".join(lines))
    with pytest.raises(probq.ProbqError, match=r"the test vectors of node|the thresholds of node"):
        run(tmp_path / "m", np.zeros((1, 4), int))


@given(st.integers(-(2**20), 2**20), st.integers(0, 12), st.integers(1, 300), st.integers(-9, 9), st.integers(1, 40))
@settings(max_examples=100)
def test_thresholds_are_where_the_code_steps(add, shift, multiplier, lo, codes):
    numbers = {"multiplier": np.array(multiplier), "add": np.array(add), "shift": np.array(shift)}
    model = one_layer([[1]], [0], 0, 1)
    x = model.ranges["fc"]
    node = Node("q", "requantize", ("fc",), {"lo": lo, "hi": lo + codes}, numbers)
    table = thresholds(node, x)
    for value in range(x.low, x.high + 1):
        code = min(max((value * multiplier + add) >> shift, lo), lo + codes)
        assert code == lo + (value >= table).sum()


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 70), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60)
def test_words_come_back(tmp_path_factory, bits, lines, elements, signed, seed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    tensor = np.random.default_rng(seed).integers(low, high + 1, (lines, elements))
    tensor[0, 0] = low
    folder = tmp_path_factory.mktemp("words")
    entry = write_words(folder, "w.mem", tensor, lines)
    assert (entry["bits"], entry["signed"]) == width_of(int(tensor.min()), int(tensor.max()))
    assert entry["bits"] <= bits
    np.testing.assert_array_equal(read_words(folder, json.loads(json.dumps(entry))), tensor)


def test_the_first_element_is_in_the_least_significant_bits(tmp_path):
    write_words(tmp_path, "w.mem", np.array([[1, -1, 2], [0, -4, 3]]), 2)
    assert (tmp_path / "w.mem").read_text() == "0b9\n0e0\n"


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog")
def test_a_simulator_reads_the_words(tmp_path):
    """Verilog's own `$readmemh` and signed part selects."""
    weight = np.random.default_rng(0).integers(-4, 4, (3, 5))
    entry = write_words(tmp_path, "w.mem", weight, 3)
    assert entry["bits"] == 3
    (tmp_path / "t.v").write_text(
        "module t; reg [14:0] w [0:2]; reg signed [2:0] e; integer i, j;\n"
        'initial begin $readmemh("w.mem", w);\n'
        "for (i = 0; i < 3; i = i + 1) for (j = 0; j < 5; j = j + 1)\n"
        'begin e = w[i][3*j +: 3]; $display("%0d", e); end\n'
        "end endmodule\n"
    )
    subprocess.run(["iverilog", "-g2012", "-o", "t", "t.v"], cwd=tmp_path, check=True)
    done = subprocess.run(["vvp", "-n", "t"], cwd=tmp_path, check=True, capture_output=True, text=True)
    np.testing.assert_array_equal(np.array(done.stdout.split(), int).reshape(3, 5), weight)


def test_vectors_begin_with_the_ends_and_are_always_the_same():
    model = one_layer(np.eye(4, dtype=int), np.zeros(4, int), 1, 15)
    x = vector_inputs(model, 8)
    np.testing.assert_array_equal(x, vector_inputs(model, 8))
    assert x.shape == (8, 4)
    assert (x[0] == 0).all()
    assert (x[1] == 255).all()
    with pytest.raises(probq.ProbqError, match="too few"):
        vector_inputs(model, 1)


def test_other_operations_are_refused_by_name(tmp_path):
    (model,), _ = lowered(NETWORKS["text"], PLANS["one scale"])
    with pytest.raises(probq.ProbqError, match="indices has no memory form"):
        write(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_neither_replaced_nor_run(tmp_path):
    model = one_layer([[1]], [0], 1, 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(probq.ProbqError, match="is no artefact of probq"):
        write(model, tmp_path / "mine")
    with pytest.raises(probq.ProbqError, match="is no artefact of probq"):
        export.verify(model, tmp_path / "mine", [[1.0]])
    with pytest.raises(probq.ProbqError, match="there is no folder"):
        run(tmp_path / "none", [[1]])
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_artefact_is_replaced_whole(tmp_path):
    write(one_layer(np.eye(4, dtype=int), np.zeros(4, int), 1, 15), tmp_path / "m")
    model = one_layer([[1]], [0], 1, 3)
    write(model, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    np.testing.assert_array_equal(run(tmp_path / "m", [[5]]), model.run([[5]]))


def test_a_damaged_folder_is_refused(tmp_path):
    model = one_layer(np.eye(4, dtype=int), np.zeros(4, int), 1, 15)
    for spoil in (lambda p: p.write_text("{}"), lambda p: p.write_text('{"format": "probq.memory", "version": 1}')):
        write(model, tmp_path / "m")
        spoil(tmp_path / "m" / "probq.json")
        with pytest.raises(probq.ProbqError, match=r"is damaged|no artefact"):
            run(tmp_path / "m", np.zeros((1, 4), int))
        shutil.rmtree(tmp_path / "m")
    write(model, tmp_path / "m")
    next((tmp_path / "m").glob("*.weight.mem")).unlink()
    with pytest.raises(probq.ProbqError, match="cannot read the words"):
        run(tmp_path / "m", np.zeros((1, 4), int))


@pytest.mark.parametrize("x", [np.zeros((1, 3), int), np.full((1, 4), 256), np.zeros((1, 4))])
def test_integers_that_do_not_fit_are_refused(x, tmp_path):
    write(one_layer(np.eye(4, dtype=int), np.zeros(4, int), 1, 15), tmp_path / "m")
    with pytest.raises(probq.ProbqError, match=r"expected integers|leave the range"):
        run(tmp_path / "m", x)
