"""Networks that return several tensors: integers, files and targets against the network's own outputs."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError
from probq.codebooks import ladder

X = torch.randn(12, 1, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:the posterior was never fitted")


class Found(NamedTuple):
    """What a detector gives."""

    boxes: Tensor
    scores: Tensor


class Pyramid(nn.Module):
    """A head at two scales of a small feature pyramid, whose outputs a function puts together."""

    def __init__(self, together):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.down = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.near, self.far, self.together = nn.Conv2d(4, 2, 1), nn.Conv2d(6, 3, 1), together

    def forward(self, x):
        fine = self.stem(x).relu()
        coarse = self.down(fine).relu()
        return self.together(self.near(fine), self.far(coarse), coarse)


TOGETHER = {
    "tuple": lambda a, b, c: (a, b),
    "list": lambda a, b, c: [b, a],
    "dict": lambda a, b, c: {"near": a, "far": {"scores": b, "none": None, "stride": 4}},
    "named tuple": lambda a, b, c: (Found(a, b), [c]),
    "twice": lambda a, b, c: (a, a, b),
}


def flat(structure):
    """The arrays or tensors of a structure, by a walk of the test's own."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, tuple | list):
        return [one for part in structure for one in flat(part)]
    return [] if structure is None or isinstance(structure, int) else [structure]


def kinds(structure):
    """The kinds of a structure's parts, with the names of fields and keys."""
    if isinstance(structure, dict):
        return {key: kinds(part) for key, part in structure.items()}
    if isinstance(structure, tuple | list):
        return type(structure).__name__, getattr(structure, "_fields", ()), [kinds(part) for part in structure]
    return "array" if isinstance(structure, np.ndarray | Tensor) else structure


@pytest.mark.parametrize("together", TOGETHER.values(), ids=TOGETHER)
def test_integers_have_the_structure_of_the_network(together, tmp_path):
    q = probq.quantize(Pyramid(together).eval(), X)
    model = probq.lower(q, q.sample(1, seed=0)[0])
    decided = q.at(q.sample(1, seed=0)[0])
    model.save(tmp_path / "m.safetensors")
    loaded = probq.IntegerModel.load(tmp_path / "m.safetensors")
    assert loaded.sha256() == model.sha256()
    for x in (X, 3 * X):
        expected = decided(x.double())
        for one in (model, loaded):
            found = one.real_output(one(x))
            assert kinds(found) == kinds(expected) == kinds(one.run(one.quantize_input(x)))
            assert all(np.array_equal(a, b.detach()) for a, b in zip(flat(found), flat(expected), strict=True))
    scales = [output.scale for output in model.outputs]
    assert scales == [scale for scale in flat(model.output_scale) if isinstance(scale, float)]
    assert len(set(scales)) > 1


@pytest.mark.parametrize("together", TOGETHER.values(), ids=TOGETHER)
def test_targets_give_every_output(together, tmp_path):
    model = probq.lower(probq.quantize(Pyramid(together).eval(), X))
    for name, options in (("m.onnx", {}), ("p.onnx", {"packed": True})):
        probq.export.onnx.write(model, tmp_path / name, **options)
        assert probq.export.verify(model, tmp_path / name, 3 * X).differing == 0
        plain = probq.export.onnx.run(tmp_path / name, model.quantize_input(X), optimize=False)
        assert all(np.array_equal(a, b) for a, b in zip(plain, flat(model(X)), strict=True))
    probq.export.c.write(model, tmp_path / "m.h")
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    found = probq.export.c.run(tmp_path / "m.h", model.quantize_input(3 * X), flags)
    assert all(np.array_equal(a, b) for a, b in zip(found, flat(model(3 * X)), strict=True))


def test_names_of_outputs_and_their_order():
    model = probq.lower(probq.quantize(Pyramid(TOGETHER["dict"]).eval(), X))
    assert [output.name for output in model.outputs] == ["output.near", "output.far.scores"]
    assert (model.output["far"]["none"], model.output["far"]["stride"]) == (None, 4)
    with pytest.raises(ProbqError, match=r"the output, at far, has no 'scores'"):
        model.real_output({"near": 1, "far": {"none": None}})


def test_a_report_counts_an_input_once_whatever_differs(tmp_path):
    q = probq.quantize(Pyramid(TOGETHER["tuple"]).eval(), X)
    first, other = (probq.lower(q, assignment) for assignment in q.sample(2, seed=1))
    probq.export.onnx.write(first, tmp_path / "m.onnx")
    assert probq.export.verify(first, tmp_path / "m.onnx", X)
    report = probq.export.verify(other, tmp_path / "m.onnx", X)
    assert report.compared == 12
    assert 0 < report.differing <= 12
    single = probq.lower(probq.quantize(Pyramid(lambda a, b, c: b).eval(), X))
    with pytest.raises(ProbqError, match=r"shape \[12, 2, 4, 4\] and \[12, 3, 2, 2\], the model \[12, 3, 2, 2\]"):
        probq.export.verify(single, tmp_path / "m.onnx", X)


def test_targets_of_one_output_refuse_by_name(tmp_path):
    model = probq.lower(probq.quantize(Pyramid(TOGETHER["tuple"]).eval(), X))
    for target in (probq.export.qonnx, probq.export.memory, probq.export.hls, probq.export.verilog):
        with pytest.raises(ProbqError, match=r"one input and one output, and this model has 1 and 2; .*ONNX or"):
            target.write(model, tmp_path / "no")


def test_one_input_is_read_at_two_scales():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) + self.b(x)

    def plan(layer):
        return probq.Plan(network_input=ladder(4 if layer.name == "a" else 8))

    x = torch.randn(8, 4)
    q = probq.quantize(Two().eval(), x, plan=plan)
    model = probq.lower(q)
    assert [(node.name, node.attributes.get("argument")) for node in model.inputs] == [
        ("input", None), ("input@2", "input"),
    ]  # fmt: skip
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())
    assert set(model.quantize_input(x)) == {"input", "input@2"}


def test_a_softmax_left_in_float_is_named_for_its_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return {"classes": self.a(x).softmax(-1), "box": self.b(x)}

    q = probq.quantize(Net().eval(), torch.randn(8, 4), plan=probq.Plan(activation=None))
    assert probq.lower(q).metadata["ends_before"] == {"output.classes": "softmax in the network"}
