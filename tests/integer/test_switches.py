"""Switches of integer models: what they mean, what they may reach, and files that lie about them."""

import numpy as np
import pytest
from fuzzing import forge, read
from random_models import Maker

from probq import IntegerModel, ProbqError
from probq.export import c, memory, onnx, qonnx
from probq.integer import Node

SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror")


def source(name="x", shape=(3,), **more):
    return Node(name, "input", (), {"shape": list(shape), "scale": 1.0, "lo": -9, "hi": 9} | more)


def chooser():
    """The place of the largest number."""
    return Node("k", "argmax", ("x",), {"axis": 0})


def body():
    """Branches 2 x; x + x + x; and a clip of x to -1 .. 1, times 5."""
    return [
        Node("two", "multiply", ("x",), tensors={"multiplier": np.array(2)}),
        Node("sum", "add", ("x", "x")),
        Node("three", "add", ("sum", "x")),
        Node("sign", "clip", ("x",), {"lo": -1, "hi": 1}),
        Node("five", "multiply", ("sign",), tensors={"multiplier": np.array(5)}),
    ]


def switch(nodes=None, inputs=("k", "x"), outputs=("two", "three", "five")):
    return Node("y", "switch", inputs, {"outputs": list(outputs)}, body=tuple(body() if nodes is None else nodes))


def model():
    return IntegerModel([source(), chooser(), switch()], "y", 1.0)


def by_hand(x):
    rows = []
    for row in x.tolist():
        k = row.index(max(row))
        rows.append([[2 * v, 3 * v, 5 * min(max(v, -1), 1)][k] for v in row])
    return np.array(rows)


def test_a_switch_is_what_python_computes(tmp_path):
    x = np.random.default_rng(0).integers(-9, 10, (200, 3))
    assert np.array_equal(model().run(x), by_hand(x))
    found = model().ranges["y"]
    assert (found.low, found.high, found.shape) == (-27, 27, (3,))
    assert model().run(x[:0]).shape == (0, 3)
    c.write(model(), tmp_path / "m.h")
    assert np.array_equal(c.run(tmp_path / "m.h", x, SANITIZED), by_hand(x))
    pytest.importorskip("onnxruntime")
    onnx.write(model(), tmp_path / "m.onnx")
    one = np.array([[5, 1, 1]])  # a batch of which no example takes two of the branches
    for optimize in (False, True):
        for given in (x, one, np.repeat(one, 3, 0)):
            assert np.array_equal(onnx.run(tmp_path / "m.onnx", given, optimize), by_hand(given))


def test_a_branch_is_computed_for_its_own_examples_alone():
    # a table of two entries is left by the numbers of all examples but those that choose its branch
    nodes = [
        Node("one", "table", ("x",), {"first": 0}, {"table": np.array([10, 20])}),
        Node("all", "multiply", ("x",), tensors={"multiplier": np.array(1)}),
    ]
    small = Node("k", "clip", ("x",), {"lo": 0, "hi": 1})
    with pytest.raises(ProbqError):  # for all inputs it could leave the table
        IntegerModel([source(shape=()), small, switch(nodes, ("k", "x"), ("all", "one"))], "y", 1.0)(np.array([5.0]))
    inside = IntegerModel([source(shape=(), lo=0, hi=1), small, switch(nodes, ("k", "x"), ("one", "all"))], "y", 1.0)
    assert inside.run(np.array([0, 1])).tolist() == [10, 1]


def test_a_file_holds_a_switch(tmp_path):
    model().save(tmp_path / "m.safetensors")
    again = IntegerModel.load(tmp_path / "m.safetensors")
    x = np.random.default_rng(1).integers(-9, 10, (50, 3))
    assert again.sha256() == model().sha256()
    assert np.array_equal(again.run(x), by_hand(x))


def test_other_targets_refuse_by_name(tmp_path):
    # a choice that they could write: 0 or 1 by a clip
    small = Node("k", "clip", ("x",), {"lo": 0, "hi": 1})
    nodes = [Node(name, "multiply", ("x",), tensors={"multiplier": np.array(2)}) for name in ("a", "b")]
    found = IntegerModel([source(shape=(1,)), small, switch(nodes, outputs=("a", "b"))], "y", 1.0)
    for write, said in ((memory.write, "switch has no memory form"), (qonnx.write, "QONNX has no switch")):
        with pytest.raises(ProbqError, match=said):
            write(found, tmp_path / "m.onnx")


def grown(draw, seed):
    """A model of an image with branches at random, whose choice is the size of its sum."""
    make = Maker(draw)
    x = make.node("input", [], {"shape": [2, 5, 6], "scale": 1.0, "lo": 0, "hi": 255})
    first = make.grow(x)
    outputs, nodes, count = [], [], draw(2, 4)
    own = Maker(draw)
    own.low, own.high, own.nodes = dict(make.low), dict(make.high), nodes
    for number in range(count):
        own.prefix = f"b{number}_"
        y = own.choose(x, first)
        for _ in range(draw(1, 4)):
            y = own.grow(y)
        y = own.node("reshape", [y], {"shape": [int(np.prod(own.shape(y)))]})
        weight = np.random.default_rng(seed + number).integers(-7, 8, (3, *own.shape(y)))
        y = own.node("requantize", [y], {"lo": -8, "hi": 7}, multiplier=1, add=0, shift=4)
        outputs.append(own.node("linear", [y], weight=weight, bias=np.arange(3)))
        known = {name for name in own.low if name in make.low}
        own.low, own.high = {k: own.low[k] for k in known}, {k: own.high[k] for k in known}
    pooled = make.node("sum", [x], {"axes": [0, 1, 2], "keepdims": False})
    choice = make.node("requantize", [pooled], {"lo": 0, "hi": count - 1}, multiplier=1, add=-60 * 100, shift=10)
    y = Node("y", "switch", (choice, x, first) if first != x else (choice, x), {"outputs": outputs}, body=tuple(nodes))
    return IntegerModel([*make.nodes, y], "y", 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_no_output_differs_for_random_branches(seed, tmp_path):
    random, found = np.random.default_rng(seed), None
    while found is None:
        try:
            found = grown(lambda low, high: int(random.integers(low, high + 1)), seed)
        except ProbqError:  # too large, or a shape that nothing takes
            continue
    x = random.integers(0, random.integers(2, 256, (150, 1, 1, 1)), (150, 2, 5, 6))
    assert len(np.unique(found.values(x)[found.nodes[-1].inputs[0]])) > 1
    c.write(found, tmp_path / "m.h")
    assert np.array_equal(c.run(tmp_path / "m.h", x, SANITIZED), found.run(x))
    pytest.importorskip("onnxruntime")
    for packed in (False, True):
        onnx.write(found, tmp_path / "m.onnx", packed=packed)
        for optimize in (False, True):
            assert np.array_equal(onnx.run(tmp_path / "m.onnx", x, optimize), found.run(x))


WRONG = {
    "one branch": (lambda: switch(body()[:1], outputs=["two"]), "two branches or more"),
    "no value": (lambda: switch(inputs=["k"]), "takes a choice and values"),
    "an output that is none": (lambda: switch(outputs=["two", "three", "six"]), "last nodes of its branches"),
    "outputs in another order": (lambda: switch(outputs=["three", "two", "five"]), "last nodes of its branches"),
    "nodes behind the last branch": (lambda: switch(outputs=["two", "three"]), "last nodes of its branches"),
    "a branch that reads another": (
        lambda: switch([*body()[:3], Node("sign", "clip", ("two",), {"lo": -1, "hi": 1}), body()[4]]),
        "no value of the switch",
    ),
    "a choice beyond the branches": (lambda: switch(body()[:3], outputs=["two", "three"]), "0 .. 2, of 2 branches"),
    "a choice of several numbers": (lambda: switch(inputs=["pair", "x"]), "one number for each example"),
    "a body within": (lambda: switch([*body()[:4], switch()], outputs=["two", "three", "y"]), "holds no switch"),
    "two names": (lambda: switch([*body()[:4], body()[0]], outputs=["two", "three", "two"]), "names must be unique"),
    "branches of two shapes": (
        lambda: switch([*body()[:4], Node("five", "argmax", ("sign",), {"axis": 0})]),
        "different shapes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_switches_are_refused_in_words(case):
    make, said = WRONG[case]
    pair = Node("pair", "slice", ("x",), {"axis": 0, "start": 0, "stop": 2, "step": 1})
    small = Node("pair", "clip", ("pair_",), {"lo": 0, "hi": 2})
    pair = Node("pair_", pair.op, pair.inputs, pair.attributes)
    with pytest.raises(ProbqError, match=said):
        IntegerModel([source(), chooser(), pair, small, make()], "y", 1.0)


FORGED = {
    "no list": (lambda entry: entry.update(body={}), "body must be of type list"),
    "none": (lambda entry: entry.pop("body"), "must hold exactly"),
    "elsewhere": (lambda entry: entry.update(op="clip"), "must hold exactly"),
    "a loop": (lambda entry: entry.update(op="loop"), "attribute"),
    "deeper": (lambda entry: entry["body"][0].update(body=[]), "node 2 of the manifest, node 0 of its body must hold"),
    "many": (lambda entry: entry.update(body=entry["body"] * 1000), "a model has at most 4,096 nodes"),
    "reference": (lambda entry: entry["body"][4].update(inputs=["k"]), "takes 'k', which is no value"),
    "outputs": (lambda entry: entry["attributes"].update(outputs=[7]), "attribute outputs must be a list of names"),
    "blob": (lambda entry: entry["body"][0].update(name="2"), "the blob '2/multiplier' is missing"),
}


@pytest.mark.parametrize("case", FORGED)
def test_files_that_lie_about_a_switch_are_refused(case, tmp_path):
    model().save(tmp_path / "m.safetensors")
    change, said = FORGED[case]
    blobs, manifest = read(tmp_path / "m.safetensors")
    change(manifest["nodes"][2])
    forge(tmp_path / "f.safetensors", blobs, manifest)
    with pytest.raises(ProbqError, match=said):
        IntegerModel.load(tmp_path / "f.safetensors")
