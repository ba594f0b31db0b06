"""Integer models of several inputs and outputs: what they mean by hand, and what hostile files are told."""

import json
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from fuzzing import forge, read

from probq.integer import IntegerModel, Node
from probq.utils.errors import ProbqError

Pair = namedtuple("Pair", ["sum", "twice"])
NODES = (
    Node("a", "input", (), {"shape": [2], "scale": 0.5, "lo": -8, "hi": 7}),
    Node("b", "input", (), {"shape": [2], "index": True, "count": 4}),
    Node("c", "input", (), {"shape": [2], "scale": 1.0, "lo": 0, "hi": 3, "argument": "a"}),
    Node("e", "embedding", ("b",), tensors={"weight": np.arange(4).reshape(4, 1)}),
    Node("r", "reshape", ("e",), {"shape": [2]}),
    Node("sum", "add", ("a", "r")),
    Node("twice", "multiply", ("c",), tensors={"multiplier": np.array(2)}),
)


OUTPUT, SCALE = Pair("sum", "twice"), Pair(0.5, 0.25)


def model(output: Any = OUTPUT, scale: Any = SCALE, arguments: Any = ("b", {"a": "a"})) -> IntegerModel:
    return IntegerModel(NODES, output, scale, arguments=arguments)


def test_outputs_by_hand():
    found = model()((np.array([[0, 3]]), {"a": [[1.0, -9.0]]}))
    assert isinstance(found, Pair)
    assert found.sum.tolist() == [[2, -5]]  # 1.0 and -9.0 are 2 and -8 halves; rows 0 and 3 are added
    assert found.twice.tolist() == [[2, 0]]  # and 1 and 0 where they are read in whole steps
    real = model().real_output(found)
    assert (real.sum.tolist(), real.twice.tolist()) == ([[1.0, -2.5]], [[0.5, 0.0]])


def test_large_batches_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr("probq.integer.ports.inputs.CHUNK", 7)
    given = (np.arange(40).reshape(20, 2) % 4, {"a": np.arange(40.0).reshape(20, 2) / 7})
    whole, rows = model()(given), [model()((given[0][k : k + 1], {"a": given[1]["a"][k : k + 1]})) for k in range(20)]
    assert np.array_equal(whole.sum, np.concatenate([row.sum for row in rows]))
    assert np.array_equal(whole.twice, np.concatenate([row.twice for row in rows]))


BUILT = {
    "no arguments": ({"arguments": None}, "3 input nodes needs arguments"),
    "an argument is missing": ({"arguments": "a"}, "node b reads 'b', which is not among the arguments"),
    "one name twice": ({"arguments": ("a", "a", "b")}, "two of the arguments have one name"),
    "one scale": ({"scale": 0.5}, "is built like the output"),
    "a scale too many": ({"scale": (0.5, 0.25, 1.0)}, "is built like the output"),
    "no node": ({"output": Pair("sum", "z")}, "the output 'z' is not a node"),
    "no output": ({"output": (), "scale": ()}, "at least one output"),
    "none but None": ({"output": (None,), "scale": (None,)}, "at least one output"),
    "a scale below 0": ({"scale": Pair(0.5, -1.0)}, "positive finite"),
    "a set": ({"output": ("sum", {"twice"}), "scale": (0.5, 0.25)}, "is no name, number or None"),
}


@pytest.mark.parametrize(("changed", "message"), BUILT.values(), ids=BUILT)
def test_what_does_not_fit_is_told(changed, message):
    with pytest.raises(ProbqError, match=message):
        model(**changed)


def test_the_batch_may_be_another_axis():
    """Every number is told from every other by its place, before and behind."""
    made = IntegerModel(NODES, OUTPUT, SCALE, arguments=("b", {"a": "a"}), axes={"a": 1, "output.sum": 1})
    plain, (b, a) = model(), (np.arange(6).reshape(3, 2) % 4, np.arange(6.0).reshape(3, 2) / 2)
    found, expected = made((b, {"a": a.T})), plain((b, {"a": a}))
    assert np.array_equal(found.sum, expected.sum.T)
    assert np.array_equal(found.twice, expected.twice)
    integers = made.quantize_input((b, {"a": a.T}))
    assert all(np.array_equal(integers[k], one) for k, one in plain.quantize_input((b, {"a": a})).items())
    assert np.array_equal(made.run(integers).sum, expected.sum)
    assert np.array_equal(made.real_output(found).sum, 0.5 * found.sum)
    with pytest.raises(ProbqError, match=r"a: the input has shape \[3\], but the model takes \[2, batch\]"):
        made((b, {"a": a[:, 0]}))
    with pytest.raises(ProbqError, match="different lengths"):
        made((b, {"a": a}))


def nested(depth: int) -> Any:
    entry: Any = "sum"
    for _ in range(depth):
        entry = {"list": [entry]}
    return entry


HOSTILE = {
    "no kind": ("output", {}, "no structure: one of"),
    "two kinds": ("output", {"tuple": ["sum"], "list": ["sum"]}, "no structure: one of"),
    "another kind": ("output", {"set": ["sum"]}, "no structure: one of"),
    "no list": ("output", {"tuple": "sum"}, "no structure: one of"),
    "a list": ("output", {"tuple": [["sum"]]}, "no part of a structure"),
    "too deep": ("output", nested(17), "nested at most 16 times"),
    "too many": ("output", {"list": ["sum"] * 5000}, "at most 4,096 parts"),
    "a keyword": ("output", {"named": ["class", [["x", "sum"]]]}, "is no named tuple"),
    "code": ("output", {"named": ["P(1)", [["x", "sum"]]]}, "is no named tuple"),
    "a private field": ("output", {"named": ["P", [["_x", "sum"]]]}, "repeat or are no names"),
    "a field that is code": ("output", {"named": ["P", [["x, y=print()", "sum"]]]}, "repeat or are no names"),
    "a field twice": ("output", {"named": ["P", [["x", "sum"], ["x", "twice"]]]}, "repeat or are no names"),
    "a key twice": ("output", {"dict": [["x", "sum"], ["x", "twice"]]}, "repeat or are no names"),
    "a key of no text": ("output", {"dict": [[1, "sum"]]}, "no pairs of a key and a part"),
    "scales of names": ("output_scale", {"tuple": ["sum", "twice"]}, "no part of a structure"),
    "arguments of numbers": ("arguments", {"tuple": ["b", {"dict": [["a", 3]]}]}, "not among the arguments"),
    "arguments of lists": ("arguments", ["a", "b"], "no part of a structure"),
    "axes of nothing": ("axes", {"z": 1}, "'z', which is no argument"),
    "axes beyond": ("axes", {"a": 2}, "batch of a is on none of its axes from 1 to 1: 2"),
    "axes that are text": ("axes", {"a": "1"}, "batch of a is on none"),
    "axes of a number": ("axes", 3, "3 is no mapping"),
}


@pytest.mark.parametrize(("part", "entry", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_structures_are_refused(part, entry, message, tmp_path):
    model().save(tmp_path / "m.safetensors")
    blobs, manifest = read(tmp_path / "m.safetensors")
    forge(tmp_path / "m.safetensors", blobs, manifest | {part: entry})
    with pytest.raises(ProbqError, match=message):
        IntegerModel.load(tmp_path / "m.safetensors")


def test_a_file_holds_kinds_names_and_constants(tmp_path):
    made = model(
        {"pair": Pair("sum", "twice"), "stride": 4, "none": [None]},
        {"pair": Pair(0.5, 0.25), "stride": None, "none": [None]},
    )
    made.save(tmp_path / "m.safetensors")
    loaded = IntegerModel.load(tmp_path / "m.safetensors")
    assert json.dumps(loaded.output) == json.dumps(made.output)
    assert (type(loaded.output["pair"]).__name__, loaded.output["pair"]._fields) == ("Pair", ("sum", "twice"))
    assert loaded.arguments == made.arguments == ("b", {"a": "a"})
    found = loaded((np.array([[0, 3]]), {"a": [[1.0, -9.0]]}))
    assert (found["stride"], found["none"], found["pair"].sum.tolist()) == (4, [None], [[2, -5]])
    with pytest.raises(ProbqError, match="the keys of dictionaries are texts"):
        model({0: "sum", 1: "twice"}, {0: 0.5, 1: 0.25}).save(tmp_path / "m.safetensors")
