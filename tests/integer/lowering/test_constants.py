"""Constants with many binary digits: the same integers in every place, by hand, and trained."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from small_fits import trained_on_digits
from torch import nn
from torch.nn import functional as F

import probq
from probq.codebooks import ladder

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))


class Own(nn.Module):
    """Layers a, b, h, a factor, an addend, the input's mean and deviation, and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.own = forward
        self.a, self.b, self.h = (nn.Linear(4, 4) for _ in range(3))
        self.gain, self.shift = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(1, 4))
        self.register_buffer("mean", torch.randn(4) / 3)
        self.register_buffer("std", 0.3 + torch.rand(4))

    def forward(self, x):
        return self.own(self, x)


PLACES = {
    "layer scale": lambda net, x: net.h(net.a(x) + net.gain * net.b(x).relu()),
    "positions": lambda net, x: net.h(F.relu6(net.a(x) + net.b(x) + net.shift)),
    "differences": lambda net, x: net.h((net.shift - net.a(x)).relu() - (net.b(x) - net.gain)),
    "numbers": lambda net, x: net.h(0.1 * net.a(x) - net.b(x) / 0.3 + 0.7),
    "computed": lambda net, x: net.h(net.a(x) * torch.sigmoid(net.gain) + net.b(x) * net.shift.exp()[0]),
    "in place": lambda net, x: net.h(net.a(x).mul_(net.gain).add_(net.shift).relu_() + net.b(x).div_(net.std)),
    "normalised input": lambda net, x: net.h(net.a((x - net.mean) / net.std) + net.b((x - net.mean) / net.std)),
    "input normalised by numbers": lambda net, x: net.h(net.b(net.a((x - 0.1307) / 0.3081)).relu()),
    "clipped input": lambda net, x: net.h(net.b(net.a(2 * x.clamp(-1, 1) - 0.3)).relu()),
    "behind an average": lambda net, x: net.h(net.gain * ((net.a(x) + net.b(x)) / 3)),
    "called twice": lambda net, x: net.h(_twice(net, _twice(net, net.b(x)))),
    "at the end": lambda net, x: net.h(net.a(x) + net.b(x)) * net.gain - 0.3,
}


def _twice(net, x):
    return net.a(x).relu() * net.gain


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("forward", PLACES.values(), ids=PLACES)
def test_integers_are_what_the_network_computes_in_every_place(forward, profile, tmp_path):
    net = Own(forward).eval()
    q = probq.quantize(net, X, probq.Plan(profile=profile))
    model = assert_exact(q, torch.cat([X, 3 * X]), tmp_path)
    q.save(tmp_path / "q.safetensors")
    assert probq.lower(probq.load(tmp_path / "q.safetensors", net)).sha256() == model.sha256()


def test_one_number_by_hand():
    """A tenth becomes 3277 / 2^15; products are rounded to 2^-12 of the power of two next to the largest."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 127 * 2.0**-7)
    net = Own(lambda net, x: (net.a(x) * 0.1).relu())
    net.a, net.b, net.h = layer, None, None
    x = (torch.arange(128.0) / 128).unsqueeze(1)
    plan = probq.Plan(weight=ladder(8), network_input=ladder(8, signed=True), profile="shift")
    model = probq.lower(probq.quantize(net.eval(), x, plan))
    values = np.floor(127 * np.arange(128) * 3277 * 2.0 ** (-14 - 15) / 2.0 ** (-3 - 12) + 0.5)
    assert model.output_scale == 2.0**-15  # the largest is 0.0985, next to 2^-3
    assert np.array_equal(model(x)[:, 0], values)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.h(x.float() / 255 + 0.25),
        lambda net, x: net.h(net.a(x) * 0.75 - 3 + net.std.round() * 2),
        lambda net, x: net.h(net.a(x * 0.5)),
    ],
)
def test_what_is_exact_already_gets_no_step(forward):
    net = Own(forward).eval()
    for name, _ in list(net.named_children()):
        if forward(net, X) is None or name == "b" or (name == "a" and "a" not in forward.__code__.co_names):
            setattr(net, name, None)
    q = probq.quantize(net, (255 * X.abs().clamp(max=1)).byte() if net.a is None else X)
    assert not q.steps.named()


class Residual(nn.Module):
    """Images normalised inside, positions, and a scaled branch."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        self.places, self.gamma = nn.Parameter(torch.zeros(1, 8, 4, 4)), nn.Parameter(torch.full((8, 1, 1), 0.1))

    def forward(self, x):
        y = self.stem((x - 0.305) / 0.376).relu() + self.places
        return self.head((y + self.gamma * self.conv(y)).relu().mean((2, 3)))


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
def test_constants_are_trained_to_their_integers(profile):
    torch.manual_seed(0)
    net = Residual()
    x, y, batches = trained_on_digits(net, 0.02, 4)
    q = probq.quantize(net, x[:64], probq.Plan(profile=profile))
    before = {name: q.net.get_parameter(name).detach().clone() for name in ("places", "gamma")}
    probq.fit(q, batches, probq.Budget(percent=4), epochs=3, seed=0, progress=False)
    model = probq.lower(q)
    for name, value in before.items():
        assert not torch.equal(q.net.get_parameter(name), value)
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())
    assert (model(x[1280:]).argmax(1) == y[1280:].numpy()).mean() > 0.5


def test_the_network_is_called_as_it_is_and_its_tensors_stay():
    net = Own(PLACES["in place"]).eval()
    q = probq.quantize(net, X)
    assert q.net.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(q.net(X), net(X))


class Aside(nn.Module):
    """What one of two layers gives depends on no input."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.place = nn.Linear(4, 8), nn.Linear(3, 8), nn.Parameter(torch.ones(1, 3))
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out((self.a(x) + self.b(self.place)).relu())


class Asked(nn.Module):
    """Learned queries look at each other, and then at the input, as in the first layer of a DETR's decoder."""

    def __init__(self):
        super().__init__()
        self.places, self.read = nn.Parameter(torch.randn(3, 8)), nn.Linear(4, 8)
        self.own, self.cross = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        queries, y = self.places.expand(len(x), -1, -1), self.read(x)
        queries = queries + self.own(queries, queries, queries)[0]
        return self.out(queries + self.cross(queries, y, y)[0])


class Doubled(torch.autograd.Function):
    """A function that torch's modes do not see through."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Hidden(nn.Module):
    """Both layers read the input, whatever becomes of it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(Doubled.apply(self.a(Doubled.apply(x))).relu())


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_what_is_behind_functions_of_users_reads_the_input():
    q = probq.quantize(Hidden().eval(), torch.randn(16, 4))
    assert [layer.name for layer in q.layers] == ["a", "b"]


CONSTANT = {
    "a layer": (Aside, (16, 4), {"b"}, 4 * 8 + 8 * 2),
    "attention": (Asked, (16, 5, 4), {"cross.q_proj", *(f"own.{n}_proj" for n in ("q", "k", "v", "out"))}, None),
}


@pytest.mark.parametrize(("make", "shape", "constant", "macs"), CONSTANT.values(), ids=CONSTANT)
def test_what_reads_no_input_is_computed_once_and_costs_nothing(make, shape, constant, macs, tmp_path):
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q = probq.quantize(net, x)
    assert {note.split()[0] for note in q.notes if "reads no input" in note} == constant
    assert not constant & {layer.name for layer in q.layers}
    assert q.uncounted == 0
    if macs is not None:
        assert sum(layer.macs for layer in q.layers) == macs
    model = probq.lower(q)
    outputs = q(x.double()).detach().numpy()
    assert np.array_equal(model(x) * model.output_scale, outputs)
    assert np.abs(outputs - net(x).detach().numpy()).max() < 0.1 * np.abs(outputs).max()
    q.save(tmp_path / "q.safetensors")
    assert np.array_equal(probq.lower(probq.load(tmp_path / "q.safetensors", net))(x), model(x))
