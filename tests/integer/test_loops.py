"""Loops of integer models: what they mean, what they may reach, and files that lie about them."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from fuzzing import forge, read
from torch import nn

import probq
from probq import IntegerModel, ProbqError
from probq.export import c, onnx
from probq.integer import Node
from probq.testing.deployed_sequences import LastOutput


def source(steps=4):
    return Node("x", "input", (), {"shape": [steps, 2], "scale": 1.0, "lo": -9, "hi": 9})


def body(hi=20):
    """s' = clip(3 s + x, -20, 20), and the output s' - s."""
    limits = {"lo": -20, "hi": hi}
    return [
        Node("x_t", "item"),
        Node("s", "state", (), {"shape": [2]} | limits),
        Node("three", "multiply", ("s",), tensors={"multiplier": np.array(3)}),
        Node("sum", "add", ("three", "x_t")),
        Node("after", "clip", ("sum",), limits),
        Node("minus", "multiply", ("s",), tensors={"multiplier": np.array(-1)}),
        Node("y", "add", ("after", "minus")),
    ]


def loop(nodes=None, **attributes):
    given = {"reverse": False, "output": "y", "next": ["after"]} | attributes
    return Node("loop", "loop", ("x",), given, body=tuple(body() if nodes is None else nodes))


def by_hand(x, reverse, firsts=None):
    """The same recurrence in plain Python."""
    found = np.zeros_like(x)
    for example, sequence in enumerate(x):
        state = [0, 0] if firsts is None else firsts[example].tolist()
        order = range(len(sequence))
        for t in reversed(order) if reverse else order:
            new = [min(max(3 * s + int(v), -20), 20) for s, v in zip(state, sequence[t], strict=True)]
            found[example, t] = [n - s for n, s in zip(new, state, strict=True)]
            state = new
    return found


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_is_what_python_computes(reverse, tmp_path):
    model = IntegerModel([source(), loop(reverse=reverse)], "loop", 1.0)
    x = np.random.default_rng(0).integers(-9, 10, (50, 4, 2))
    expected = by_hand(x, reverse)
    assert np.array_equal(model.run(x), expected)
    found = model.ranges["loop"]
    assert (found.low, found.high, found.shape) == (-40, 40, (4, 2))
    c.write(model, tmp_path / "m.h")
    assert np.array_equal(c.run(tmp_path / "m.h", x, ("-O1", "-Werror")), expected)
    pytest.importorskip("onnxruntime")
    onnx.write(model, tmp_path / "m.onnx")
    for optimize in (False, True):
        assert np.array_equal(onnx.run(tmp_path / "m.onnx", x, optimize), expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_a_state_begins_with_what_is_given_or_with_a_constant(constant, reverse, tmp_path):
    random = np.random.default_rng(0)
    x, firsts = random.integers(-9, 10, (20, 4, 2)), random.integers(-20, 21, (20, 2))
    nodes, given = body(), {"x": x, "h": firsts}
    if constant:
        firsts[:] = firsts[0]
        nodes[1] = Node("s", "state", (), nodes[1].attributes, {"first": firsts[0]})
        model, given = IntegerModel([source(), loop(nodes, reverse=reverse)], "loop", 1.0), x
    else:
        state = Node("h", "input", (), {"shape": [2], "scale": 1.0, "lo": -20, "hi": 20})
        spec = {"reverse": reverse, "output": "y", "next": ["after"], "given": [0]}
        made = Node("loop", "loop", ("x", "h"), spec, body=tuple(nodes))
        model = IntegerModel([source(), state, made], "loop", 1.0, arguments=("x", "h"))
    model.save(tmp_path / "m.safetensors")
    expected = by_hand(x, reverse, firsts)
    for one in (model, IntegerModel.load(tmp_path / "m.safetensors")):
        assert np.array_equal(one.run(given), expected)
    c.write(model, tmp_path / "m.h")
    assert np.array_equal(c.run(tmp_path / "m.h", given, ("-O1", "-Werror")), expected)
    pytest.importorskip("onnxruntime")
    onnx.write(model, tmp_path / "m.onnx")
    assert np.array_equal(onnx.run(tmp_path / "m.onnx", given), expected)


def test_states_that_are_exchanged_are_those_before_the_step(tmp_path):
    """Fibonacci's numbers, plus the input: a' = b, b' = a + b + x, clipped; the output is a."""
    limits = {"lo": -999, "hi": 999}
    nodes = [
        Node("x_t", "item"), Node("a", "state", (), {"shape": [2]} | limits),
        Node("b", "state", (), {"shape": [2]} | limits), Node("both", "add", ("a", "b")),
        Node("all", "add", ("both", "x_t")), Node("after", "clip", ("all",), limits),
    ]  # fmt: skip
    model = IntegerModel([source(12), loop(nodes, output="a", next=["b", "after"])], "loop", 1.0)
    x = np.zeros((1, 12, 2), int)
    x[0, 0] = 1
    assert model.run(x)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
    c.write(model, tmp_path / "m.h")
    assert np.array_equal(c.run(tmp_path / "m.h", x, ("-O1", "-Werror")), model.run(x))
    pytest.importorskip("onnxruntime")
    onnx.write(model, tmp_path / "m.onnx")
    assert np.array_equal(onnx.run(tmp_path / "m.onnx", x), model.run(x))


def changed(place, **fields):
    nodes = body()
    old = nodes[place]
    own = {name: getattr(old, name) for name in ("name", "op", "inputs", "attributes", "tensors", "body")}
    nodes[place] = Node(**{**own, **fields})
    return nodes


def given_state(name):
    return Node("z", "loop", ("x", name), loop().attributes | {"given": [0]}, body=tuple(body()))


WRONG = {
    "later node": (lambda: loop(changed(3, inputs=("three", "y"))), "takes 'y', which is none before it there"),
    "outer node": (lambda: loop(changed(3, inputs=("three", "x"))), "takes 'x', which is none before it there"),
    "twice a name": (lambda: loop(changed(5, name="sum")), "two nodes of the body are named 'sum'"),
    "a loop inside": (lambda: loop([*body(), loop()]), "the body of a loop holds no loop"),
    "an input inside": (lambda: loop([source(), *body()]), "the body of a loop holds no input"),
    "no such output": (lambda: loop(output="z"), "'z' is no node of the body"),
    "no such next": (lambda: loop(next=["z"]), "'z' is no node of the body"),
    "too few next": (lambda: loop(next=[]), "next names 0 values for 1 states"),
    "no item": (lambda: loop([*body()[1:3], Node("y", "add", ("s", "three"))], next=["three"]), "as many items"),
    "without zero": (lambda: loop(changed(1, attributes={"shape": [2], "lo": 1, "hi": 20})), "begins with 0"),
    "no body": (lambda: Node("loop", "loop", ("x",), loop().attributes), "as many items in its body, not 0"),
    "body of another": (lambda: Node("y", "clip", ("x",), {"lo": 0, "hi": 1}, body=tuple(body())), "takes no body"),
    "no nodes": (lambda: Node("loop", "loop", ("x",), loop().attributes, body=("x_t",)), "a body holds nodes"),
    "limits": (lambda: IntegerModel([source(), loop(body(hi=21), next=["sum"])], "loop", 1.0), "may leave its limits"),
    "shape": (
        lambda: IntegerModel([source(), loop(changed(1, attributes={"shape": [1], "lo": -20, "hi": 20}))], "loop", 1.0),
        r"the state s of shape \(1,\) becomes after of shape \(2,\)",
    ),
    "given twice": (lambda: loop(given=[0, 0]), r"given names the states \[0, 0\] of 1"),
    "no such state": (lambda: loop(given=[1]), r"given names the states \[1\] of 1"),
    "nothing given": (lambda: loop(given=[0]), "a loop over 0 sequences has as many items"),
    "given another shape": (
        lambda: IntegerModel([source(), given_state("x")], "z", 1.0),
        r"the state s of shape \(2,\) begins with \(4, 2\)",
    ),
    "another shape": (lambda: loop(changed(1, tensors={"first": np.zeros(3, int)})), "or with a tensor of its own"),
    "a first one beyond": (lambda: loop(changed(1, tensors={"first": np.array([0, 21])})), "begins with 21, which its"),
    "given beyond": (
        lambda: IntegerModel(
            [
                source(),
                Node("h", "multiply", ("x",), tensors={"multiplier": np.array(3)}),
                Node("p", "sum", ("h",), {"axes": [0], "keepdims": False}),
                given_state("p"),
            ],
            "z", 1.0,
        ),
        "the state s may begin beyond its limits",
    ),
    "no steps": (lambda: IntegerModel([source(0), loop()], "loop", 1.0), "are no sequences of one length above 0"),
    "outside": (lambda: IntegerModel([source(), Node("x_t", "item")], "x_t", 1.0), "stands outside of a loop's body"),
    "into a body": (
        lambda: IntegerModel([source(), loop(), Node("z", "clip", ("after",), {"lo": 0, "hi": 1})], "z", 1.0),
        "takes 'after', which is not an earlier node",
    ),
    "a name of the body": (
        lambda: IntegerModel([source(), loop(), Node("sum", "clip", ("x",), {"lo": 0, "hi": 1})], "sum", 1.0),
        "two nodes are named sum",
    ),
    "long work": (lambda: IntegerModel([source(2**27), loop()], "loop", 1.0), "one example takes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_loops_are_refused_in_words(case):
    make, message = WRONG[case]
    with pytest.raises(ProbqError, match=message):
        make()


FORGED = {
    "deeper": (lambda entry: entry["body"][0].update(body=[]), "node 1 of the manifest, node 0 of its body must hold"),
    "no list": (lambda entry: entry.update(body={}), "body must be of type list"),
    "none": (lambda entry: entry.pop("body"), "must hold exactly"),
    "elsewhere": (lambda entry: entry.update(op="clip"), "must hold exactly"),
    "no node": (lambda entry: entry.update(body=[3]), "node 0 of its body must hold exactly"),
    "many": (lambda entry: entry.update(body=entry["body"] * 1000), "a model has at most 4,096 nodes"),
    "reference": (lambda entry: entry["body"][4].update(inputs=["x"]), "takes 'x', which is none before it there"),
    "names": (lambda entry: entry["body"][4].update(inputs=[None]), "inputs must be names"),
    "next": (lambda entry: entry["attributes"].update(next=[7]), "attribute next must be a list of names"),
    "blob": (lambda entry: entry["body"][2].update(name="other"), "the blob 'other/multiplier' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_files_that_lie_about_a_loop_are_refused(case, tmp_path):
    IntegerModel([source(), loop()], "loop", 1.0).save(tmp_path / "m.safetensors")
    change, message = FORGED[case]
    blobs, manifest = read(tmp_path / "m.safetensors")
    change(manifest["nodes"][1])
    forge(tmp_path / "f.safetensors", blobs, manifest)
    with pytest.raises(ProbqError, match=message):
        IntegerModel.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_what_a_step_reads_keeps_the_bounds_of_its_channels(kind, tmp_path):
    """The gates of the inputs have scales of their own, coarse ones beside those of the state: 8 bits have room."""
    torch.manual_seed(0)
    net = LastOutput(kind(16, 4, batch_first=True), 4).eval()
    with torch.no_grad():
        net.recurrent.weight_hh_l0.mul_(1 / 8)
    x = torch.randn(32, 3, 16)
    assert_exact(probq.quantize(net, x, probq.uniform(8, 8)).eval(), torch.cat([x, 3 * x]), tmp_path)
