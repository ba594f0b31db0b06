"""Constants that are joined with what layers compute, or that limit it: exact integers in every place and target."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from small_fits import trained_on_digits
from torch import nn
from torch.nn import functional as F

import probq
from probq.codebooks import ladder

X = torch.randn(16, 6, 4, generator=torch.Generator().manual_seed(3))


class Own(nn.Module):
    """Two layers, tokens, and a forward given as a function; positions are an embedding where it takes them."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.a, self.h = forward, nn.Linear(4, 8), nn.Linear(8, 3)
        self.token, self.limit = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.rand(8))
        self.slopes = nn.Parameter(torch.randn(6))
        if "places" in forward.__code__.co_names:
            self.places = nn.Embedding(7, 8)

    def forward(self, x):
        return self.h(self.own(self, self.a(x)))


def _joined(net, x):
    return torch.cat([net.token.expand(len(x), -1, -1), x], 1)


PLACES = {
    "class token": lambda net, x: (_joined(net, x) + _joined(net, x.relu()).flip(1)).mean(1),
    "class token with positions": lambda net, x: _joined(net, x) + net.places(torch.arange(7)),
    "repeated": lambda net, x: torch.cat([x, net.token.repeat(len(x), 2, 1)], 1).clamp(-0.3, 0.7),
    "in between": lambda net, x: torch.cat([x[:, :2], net.token.expand_as(x[:, :1]), x[:, 2:]], 1) * 0.1,
    "stacked": lambda net, x: torch.stack([net.limit.expand(len(x), 6, 8), x.relu(), x], 2).amax(2),
    "zeros and ones": lambda net, x: torch.cat([torch.zeros_like(x[:, :1]), x, x.new_ones(len(x), 1, 8)], 1).mean(1),
    "one channel more": lambda net, x: torch.cat([torch.linspace(-1, 1, 6).expand(len(x), 1, 6).mT, x[..., 1:]], 2),
    "padded": lambda net, x: F.pad(x, (0, 0, 1, 2), value=0.3) - F.pad(x, (0, 0, 3, 0), value=-2.0),
    "limits that are parameters": lambda net, x: torch.maximum(x.clamp(max=net.token[0]), -net.limit),
    "limits that are no round numbers": lambda net, x: F.hardtanh(x, -0.3, 0.4) + x.clamp_(min=0.1),
    "slopes": lambda net, x: F.prelu(x, net.slopes) + F.prelu(x, net.limit[:1]),
}


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("forward", PLACES.values(), ids=PLACES)
def test_integers_are_what_the_network_computes_in_every_place(forward, profile, tmp_path):
    net = Own(forward).eval()
    q = probq.quantize(net, X, probq.Plan(profile=profile))
    model = assert_exact(q, torch.cat([X, 3 * X]), tmp_path)
    q.save(tmp_path / "q.safetensors")
    assert probq.lower(probq.load(tmp_path / "q.safetensors", net)).sha256() == model.sha256()


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("forward", PLACES.values(), ids=PLACES)
def test_with_wide_codebooks_outputs_are_nearly_those_of_the_network(forward):
    net = Own(forward).eval()
    wide = probq.Plan(weight=ladder(12), input=ladder(12), network_input=ladder(12))
    exact = net(X).detach()
    found = probq.quantize(net, X, wide)(X)
    assert float((found - exact).abs().max()) < 0.01 * float(exact.abs().max())


def test_a_token_by_hand():
    """A token alone reaches the layer, rounded half up, whatever the input is."""
    net = Own(lambda net, x: _joined(net, x)[:, 0]).eval()
    q = probq.quantize(net, X)
    model = probq.lower(q)
    step = 2.0 ** round(float(q.inputs["h.input"].scales()[-1].detach().log2()))
    codes = np.floor(net.token.detach().double().numpy()[0, 0] / step + 0.5)
    (layer,) = [node for node in model.nodes if node.name == "h"]
    found = model.values(model.quantize_input(X))["h"]
    assert np.array_equal(found, np.tile(layer.tensors["weight"] @ codes + layer.tensors["bias"], (16, 1)))


def test_coordinates_beside_the_network_s_own_input(tmp_path):
    """Rows and columns are channels, as in R. Liu et al., 2018, and one side is padded with a number."""

    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            rows = torch.linspace(-1, 1, 6).reshape(1, 1, 6, 1).expand(len(x), 1, 6, 6)
            return self.conv(F.pad(torch.cat([x, rows, rows.mT], 1), (1, 0), value=0.7))

    torch.manual_seed(0)
    x = torch.randn(8, 1, 6, 6)
    assert_exact(probq.quantize(Placed().eval(), x), 2 * x, tmp_path)


class OnInput(nn.Module):
    """A normalisation of the network's own input, two convolutions, and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.a, self.b = forward, nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 1)
        if "norm" in forward.__code__.co_names:
            self.norm = nn.BatchNorm2d(2)
            self.norm.load_state_dict({
                "weight": torch.tensor([1.3, -0.7]), "bias": torch.tensor([0.2, 0.4]),
                "running_mean": torch.tensor([0.3, -1.1]), "running_var": torch.tensor([2.0, 0.4]),
                "num_batches_tracked": torch.tensor(1),
            })  # fmt: skip

    def forward(self, x):
        return self.own(self, x)


ON_INPUT = {
    "normalised": lambda net, x: net.b(net.a(net.norm(x)).relu()),
    "flipped, then normalised": lambda net, x: net.b(net.a(net.norm(x.flip(2)) * 0.3).relu()),
    "what the layers leave": lambda net, x: net.b(x - net.a(x)),
    "what the layers add": lambda net, x: net.b((net.a(x) + x).relu() - x),
}


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("forward", ON_INPUT.values(), ids=ON_INPUT)
def test_the_network_s_own_input_is_rounded_where_it_is_normalised_or_added(forward, profile, tmp_path):
    net, x = OnInput(forward).eval(), torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    q = probq.quantize(net, x, probq.Plan(profile=profile))
    model = assert_exact(q, torch.cat([x, 3 * x]), tmp_path)
    q.save(tmp_path / "q.safetensors")
    assert probq.lower(probq.load(tmp_path / "q.safetensors", net)).sha256() == model.sha256()
    wide = probq.quantize(net, x, probq.Plan(weight=ladder(9), input=ladder(9), network_input=ladder(9)))(x)
    assert float((wide - net(x)).detach().abs().max()) < 0.02 * float(net(x).detach().abs().max())


class Tokens(nn.Module):
    """Rows of an image, a class token, positions, and slopes that are learned."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(8, 12), nn.Linear(9, 9), nn.Linear(12, 10)
        self.token, self.act = nn.Parameter(torch.zeros(1, 1, 12)), nn.PReLU(9)

    def forward(self, x):
        y = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x[:, 0])], 1)
        return self.head(y + self.act(self.mix(y.mT).mT)).amax(1)


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
def test_tokens_and_slopes_are_trained_to_their_integers(profile):
    torch.manual_seed(0)
    net = Tokens()
    x, y, batches = trained_on_digits(net, 0.02, 4)
    q = probq.quantize(net, x[:64], probq.Plan(profile=profile))
    before = {name: q.net.get_parameter(name).detach().clone() for name in ("token", "act.weight")}
    probq.fit(q, batches, probq.Budget(percent=4), epochs=2, seed=0, progress=False)
    model = probq.lower(q)
    for name, value in before.items():
        assert not torch.equal(q.net.get_parameter(name), value)
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())
    assert (model(x[1280:]).argmax(1) == y[1280:].numpy()).mean() > 0.5
