"""What enters an integer model: one tensor, of real numbers, of indices, or of whole numbers such as pixels."""

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.codebooks import ladder

VECTORS, INDICES = torch.randn(16, 4), torch.randint(0, 5, (16, 3))
SEQUENCES, PIXELS = torch.randn(16, 6, 4), torch.randint(0, 256, (64, 1, 6, 6), dtype=torch.uint8)


class Net(nn.Module):
    """Modules by name, and a forward given as a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        torch.manual_seed(0)
        for name, make in modules.items():
            setattr(self, name, make())
        self.own = forward

    def forward(self, x, y=None):
        return self.own(self, x) if y is None else self.own(self, x, y)


def images(prepared):
    return Net(
        lambda net, x: net.b(net.a(prepared(x)).relu().flatten(1)),
        a=lambda: nn.Conv2d(1, 3, 3), b=lambda: nn.Linear(48, 3),
    ).eval()  # fmt: skip


WHOLE = {
    "float": (images(lambda x: x.float()), PIXELS),
    "to": (images(lambda x: x.to(torch.float32)), PIXELS),
    "twice": (images(lambda x: x.float() - x.to(torch.float32) / 2), PIXELS),
    "by 255": (images(lambda x: x.float() / 255), PIXELS),
    "without float": (images(lambda x: x / 255), PIXELS),
    "around 0": (images(lambda x: (x.float() - 127.5) / 127.5), PIXELS),
    "pooled": (images(lambda x: nn.functional.avg_pool2d(x.float(), 3, 1, 1)), PIXELS),
    "signed": (images(lambda x: x.float() / 3), (PIXELS.int() - 128).to(torch.int8)),
    "16 bits": (images(lambda x: x.float()), (PIXELS.int() * 128 - 5000).to(torch.int16)),
    "masks": (images(lambda x: x.float()), PIXELS > 127),
}


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize(("net", "x"), WHOLE.values(), ids=WHOLE)
def test_whole_numbers_are_integers_from_the_start(net, x, bits, tmp_path):
    plan = probq.Plan(weight=ladder(4), network_input=ladder(bits, signed=True))
    q = probq.quantize(net, x, plan=plan)
    model = probq.lower(q)
    ends = (0, 1) if x.dtype == torch.bool else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
    assert (model.input.attributes["scale"], model.input.attributes["lo"], model.input.attributes["hi"]) == (1.0, *ends)
    assert np.array_equal((model(x) * model.output_scale).astype(np.float32), q(x).detach().numpy())
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(probq.IntegerModel.load(tmp_path / "m.safetensors")(x), model(x))


@pytest.mark.parametrize("name", ["by 255", "around 0", "pooled"])
def test_pixels_as_they_are_enter_what_is_exported(name, tmp_path):
    model = probq.lower(probq.quantize(*WHOLE[name]))
    for target, file in ((probq.export.c, "m.h"), (probq.export.onnx, "m.onnx")):
        target.write(model, tmp_path / file)
        assert probq.export.verify(model, tmp_path / file, PIXELS.numpy()).differing == 0


def test_a_rounded_pixel_is_the_nearest_level_of_the_fraction():
    """By hand: a pixel over 255, on the grid of its layer's input, in whole numbers alone."""
    net = Net(lambda net, x: net.a(x.float() / 255), a=lambda: nn.Linear(1, 1, bias=False))
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    q = probq.quantize(net.eval(), x, plan=probq.Plan(weight=ladder(8), network_input=ladder(6, signed=False)))
    power = round(float(q.inputs["a.input"].log2_scale.detach()))
    model = probq.lower(q)
    values = model.values(model.quantize_input(x))
    rounded = next(values[node.name] for node in model.nodes if node.op == "requantize")
    units = 2**-power
    assert rounded[:, 0].tolist() == [min((2 * pixel * units + 255) // 510, 63) for pixel in range(256)]


def test_one_index_in_embeddings_of_two_sizes_is_below_both():
    net = Net(
        lambda net, x: net.c((net.a(x) + net.b(x)).flatten(1)),
        a=lambda: nn.Embedding(7, 4), b=lambda: nn.Embedding(5, 4), c=lambda: nn.Linear(12, 3),
    )  # fmt: skip
    q = probq.quantize(net.eval(), INDICES)
    model = probq.lower(q)
    assert model.input.attributes["count"] == 5
    assert np.array_equal((model(INDICES) * model.output_scale).astype(np.float32), q(INDICES).detach().numpy())


class OwnGRU(nn.GRU):
    """A class whose forward may be anything."""


SEVERAL = {
    "two inputs": (
        Net(lambda net, x, y: net.a(x) + net.b(y), a=lambda: nn.Linear(4, 3), b=lambda: nn.Linear(4, 3)),
        (VECTORS, VECTORS),
    ),
    "two indices": (
        Net(
            lambda net, x, y: net.c((net.a(x) + net.b(y)).flatten(1)),
            a=lambda: nn.Embedding(5, 4),
            b=lambda: nn.Embedding(5, 4),
            c=lambda: nn.Linear(12, 3),
        ),
        (INDICES, INDICES),
    ),
    "an index and a number": (
        Net(
            lambda net, x, y: net.c(net.a(x).flatten(1)) + net.b(y),
            a=lambda: nn.Embedding(5, 4),
            b=lambda: nn.Linear(4, 3),
            c=lambda: nn.Linear(12, 3),
        ),
        (INDICES, VECTORS),
    ),
}


@pytest.mark.parametrize(("net", "x"), SEVERAL.values(), ids=SEVERAL)
def test_several_inputs_are_read_each_by_its_own_node(net, x):
    q = probq.quantize(net.eval(), x)
    model = probq.lower(q)
    assert tuple(node.name for node in model.inputs) == model.arguments == ("input.x", "input.y")
    expected = q(*(a.double() if a.is_floating_point() else a for a in x)).detach().double().numpy()
    assert np.abs(model.real_output(model(x)) - expected).max() <= 1e-6 * np.abs(expected).max()
    with pytest.raises(probq.ProbqError, match=r"2 inputs, input\.x, input\.y"):
        model.input  # noqa: B018


REFUSED = {
    "64 bits": (images(lambda x: x.float()), PIXELS.long(), "whole numbers of any size"),
    "RNN": (
        Net(
            lambda net, x: net.c(net.r(x)[0][:, -1]),
            r=lambda: nn.RNN(4, 5, batch_first=True), c=lambda: nn.Linear(5, 3),
        ),
        SEQUENCES,
        "rnn_tanh in r .*recurrent",
    ),
    "GRU of a class of its own behind a layer": (
        Net(
            lambda net, x: net.c(net.r(net.a(x))[0][:, -1]),
            a=lambda: nn.Linear(4, 4), r=lambda: OwnGRU(4, 5, batch_first=True), c=lambda: nn.Linear(5, 3),
        ),
        SEQUENCES,
        "gru in r .*recurrent",
    ),
    "RNN cell": (
        Net(
            lambda net, x: net.c(net.r(net.a(x))),
            a=lambda: nn.Linear(4, 4), r=lambda: nn.RNNCell(4, 5), c=lambda: nn.Linear(5, 3),
        ),
        VECTORS,
        "rnn_tanh_cell in r .*recurrent",
    ),
    "max_norm": (
        Net(
            lambda net, x: net.c(net.a(x).flatten(1)),
            a=lambda: nn.Embedding(5, 4, max_norm=1.0), c=lambda: nn.Linear(12, 3),
        ),
        INDICES,
        "embedding_renorm in a .*max_norm",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*stays? float")
@pytest.mark.parametrize(("net", "x", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_true(net, x, message):
    q = probq.quantize(net.eval(), x)
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(q)
