"""A length that is left free: every length gives what lowering for it gives, in the interpreter, ONNX and C."""

import numpy as np
import pytest
import torch
from fuzzing import forge, read
from torch import nn

import probq
from probq import IntegerModel, ProbqError
from probq.integer.lengths.free_length import FreeLength
from probq.testing.deployed_sequences import LastOutput


class Masked(nn.Module):
    """Two inputs have the length, and a third has not; a convolution looks back, and attention sees all places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.kind = nn.Embedding(7, 4), nn.Conv1d(4, 4, 3, padding=2), nn.Linear(3, 4)
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, ids, kind, seen):
        x = self.words(ids) * seen.unsqueeze(-1)
        x = self.mix(x.transpose(1, 2))[:, :, :-2].transpose(1, 2).relu() + self.kind(kind).unsqueeze(1)
        return self.out(self.attention(x, x, x, need_weights=False)[0])[:, -1]


def example(steps):
    """Sequences, as `LastOutput` reads them."""
    return torch.randn(16, steps, 3, generator=torch.Generator().manual_seed(steps))


def several(steps):
    generator = torch.Generator().manual_seed(steps)
    return (
        torch.randint(0, 7, (16, steps), generator=generator), torch.randn(16, 3, generator=generator),
        (torch.arange(steps) < 3).expand(16, steps),
    )  # fmt: skip


CASES = {
    "last output": (lambda: LastOutput(nn.GRU(3, 2, batch_first=True), 2), example),
    "attention": (Masked, several),
}


@pytest.mark.parametrize(("make", "inputs"), CASES.values(), ids=CASES)
def test_every_length_is_what_the_network_computes(make, inputs, tmp_path):
    torch.manual_seed(0)
    q = probq.quantize(make().eval(), inputs(5))
    model = probq.lower(q, free_axis=1)
    model.save(tmp_path / "m")
    loaded = IntegerModel.load(tmp_path / "m")
    assert loaded.sha256() == model.sha256()
    dynamic = make is not Masked  # whose sums grow with the length
    if dynamic:
        probq.export.onnx.write(loaded, tmp_path / "m.onnx")
        assert probq.export.verify(model, tmp_path / "m.onnx", inputs(5)[:0]).compared == 0
    else:
        with pytest.raises(ProbqError, match=r"may reach .* at length 5, and more at greater ones.*at_length"):
            probq.export.onnx.write(model, tmp_path / "m.onnx")
    for steps in (1, 5, 12):
        x = inputs(steps)
        given = [part.double() if part.is_floating_point() else part for part in (x if make is Masked else (x,))]
        expected = q(*given).detach().numpy() / model.output_scale
        assert np.array_equal(loaded(x), expected)
        assert np.array_equal(model.at_length(steps)(x), expected)
        integers = model.quantize_input(x)
        assert np.array_equal(model.run(integers), expected)
        for optimize in (False, True) if dynamic else ():
            assert np.array_equal(probq.export.onnx.run(tmp_path / "m.onnx", integers, optimize), expected)
    probq.export.c.write(model.at_length(12), tmp_path / "m.h")
    assert probq.export.verify(model, tmp_path / "m.h", x).differing == 0
    with pytest.raises(ProbqError, match="shape"):
        probq.export.verify(model, tmp_path / "m.h", inputs(5))


class Other(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer, self.places, self.function = nn.Linear(3, 4), nn.Parameter(torch.randn(8, 3)), forward

    def forward(self, x):
        return self.layer(self.function(self, x))


REFUSED = {
    "an average": (
        lambda net, x: net.layer(x).relu().mean(1)[:, :3],
        1,
        r"has other numbers at other lengths, as an av",
    ),
    "places": (lambda net, x: x + net.places[: x.shape[1]], 1, r"has other numbers at other lengths"),
    "as long as the places": (lambda net, x: x + net.places[:5], 1, r"the length is not free: at 6, torch\.export"),
    "a half": (lambda net, x: x[:, : x.shape[1] // 2], 1, r"its stop does not grow evenly with the length"),
    "no axis": (lambda net, x: x, 3, r"free_axis is an axis of the first input, from 1 to 2"),
    "the batch": (lambda net, x: x, 0, r"from 1 to 2 behind the batch, not 0"),
}


@pytest.mark.parametrize(("forward", "axis", "message"), REFUSED.values(), ids=REFUSED)
def test_what_depends_on_the_length_is_refused(forward, axis, message):
    torch.manual_seed(0)
    q = probq.quantize(Other(forward).eval(), example(5))
    with pytest.raises(ProbqError, match=message):
        probq.lower(q, free_axis=axis)


def test_one_length_alone_says_what_to_do():
    model = probq.lower(probq.quantize(nn.Linear(3, 2), example(5)))
    with pytest.raises(ProbqError, match="lower it with free_axis=1"):
        model.at_length(6)
    with pytest.raises(ProbqError, match=r"\[16, 6, 3\], but the model takes \[batch, 5, 3\]"):
        model(example(6))


HOSTILE = {
    "a number": (3, "lengths are a length and slopes"),
    "no length": ({"length": 0, "slopes": {}}, "lengths are a length and slopes"),
    "a list": ({"length": 5, "slopes": []}, "attributes by the names of nodes"),
    "nothing grows": ({"length": 5, "slopes": {}}, "an input whose shape depends on it"),
    "no node": ({"length": 5, "slopes": {"z": {"shape": [1, 0]}}}, "'z', which is no node"),
    "no attribute": ({"length": 5, "slopes": {"input": {"size": 1}}}, "None does not grow by 1"),
    "another nesting": ({"length": 5, "slopes": {"input": {"shape": 1}}}, "does not grow by 1"),
    "a fraction": ({"length": 5, "slopes": {"input": {"shape": [0.5, 0]}}}, "does not grow by 0.5"),
    "out of proportion": ({"length": 5, "slopes": {"input": {"shape": [2**40, 0]}}}, "does not grow by"),
}


def test_hostile_lengths_are_refused(tmp_path):
    probq.lower(probq.quantize(nn.Linear(3, 2), example(5)), free_axis=1).save(tmp_path / "m")
    blobs, manifest = read(tmp_path / "m")
    for entry, message in HOSTILE.values():
        forge(tmp_path / "m", blobs, manifest | {"lengths": entry})
        with pytest.raises(ProbqError, match=message):
            IntegerModel.load(tmp_path / "m")
    for wrong in (0, -1, True, 2**40, "5"):
        with pytest.raises(ProbqError, match="a length is a whole number from 1"):
            FreeLength(5, {}).at((), wrong)
