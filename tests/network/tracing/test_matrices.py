"""Products with a constant matrix are layers: `x @ w`, `w @ x` and Einstein sums, of parameters, buffers and others."""

import pytest
import torch
import torch.nn.functional as F
from exact_integers import assert_exact
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import probq
from probq.codebooks import ladder
from probq.network.matrices.views import arrangement
from probq.network.tracing.trace import layers
from probq.testing import decided_copy


class Graph(nn.Module):
    """A graph convolution: neighbours' features are summed by a buffer, and multiplied with parameters."""

    def __init__(self):
        super().__init__()
        links = torch.rand(5, 5) + torch.eye(5)
        self.register_buffer("links", links / links.sum(1, keepdim=True))
        self.first, self.second = nn.Parameter(torch.randn(4, 8) / 2), nn.Parameter(torch.randn(8, 3) / 2)
        self.shift = nn.Parameter(torch.randn(8) / 3)

    def forward(self, x):
        x = F.relu(self.links @ x @ self.first + self.shift)
        return torch.matmul(self.links, x) @ self.second


class Heads(nn.Module):
    """Einstein sums with parameters of three axes, and a vector."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Parameter(torch.randn(4, 2, 6) / 2), nn.Parameter(torch.randn(2, 6, 3))
        self.score = nn.Parameter(torch.randn(3))

    def forward(self, x):
        x = torch.einsum("bnd,dhk->bhnk", x, self.into).relu()
        return torch.einsum("hko,bhnk->bno", self.out, x) @ self.score


class Computed(nn.Module):
    """Matrices that are computed of parameters, or are no tensors of the network."""

    def __init__(self):
        super().__init__()
        self.links, self.learned = torch.rand(5, 5), nn.Parameter(torch.rand(5, 5))
        self.a, self.directions = nn.Linear(4, 8), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        x = torch.bmm(self.links.expand(len(x), 5, 5), self.a(x)).relu()
        x = torch.softmax(self.learned, -1) @ x
        return F.linear(x.mean(1), F.normalize(self.directions))


class Asked(nn.Module):
    """Queries that are learned, of two heads, read keys and values; a last matrix of each head is behind them.

    Source: A. Jaegle et al., 2021, "Perceiver: General Perception with Iterative Attention".
    """

    def __init__(self):
        super().__init__()
        self.queries, self.key, self.value = nn.Parameter(torch.randn(3, 8)), nn.Linear(4, 8), nn.Linear(4, 8)
        self.behind = nn.Parameter(torch.randn(2, 4, 2))

    def forward(self, x):
        key, value = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.key, self.value))
        queries = F.layer_norm(self.queries, (8,)).expand(len(x), 3, 8).clone().unflatten(-1, (2, 4)).transpose(1, 2)
        found = (queries @ key.transpose(-2, -1) / 2).softmax(-1) @ value
        return (found @ self.behind).transpose(1, 2).flatten(1)


class Standardized(nn.Module):
    """Convolutions with a weight of mean 0, and with one buffer for all channels."""

    def __init__(self):
        super().__init__()
        self.weight, self.b = nn.Parameter(torch.randn(8, 4, 3)), nn.Linear(8, 3)
        self.register_buffer("blur", torch.tensor([1.0, 2, 1]).reshape(1, 1, 3) / 4)

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        x = F.conv1d(x.transpose(1, 2), weight, padding=1).relu()
        return torch.addmm(self.b.bias, F.conv1d(x, self.blur.expand(8, 1, 3), groups=8).mean(2), self.b.weight.T)


OWN = "matmul().layer.weight", "matmul()2.layer.weight", "linear().layer.weight"
NETWORKS = {
    "graph": (Graph, ["links", "first", "links", "second"], ["links"]),
    "heads": (Heads, ["into", "out", OWN[0]], []),
    "computed": (Computed, ["a.weight", *OWN], [OWN[0]]),
    "asked": (Asked, ["key.weight", "value.weight", OWN[0], "matmul()2.right.input", "matmul()3.layer.weight"], []),
    "standardized": (
        Standardized,
        ["conv1d().layer.weight", "conv1d()2.layer.weight", "b.weight"],
        ["conv1d()2.layer.weight"],
    ),
}
every_network = pytest.mark.parametrize(("kind", "weights", "frozen"), NETWORKS.values(), ids=NETWORKS)


@every_network
def test_they_are_layers_with_the_macs_of_torch(kind, weights, frozen):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(16, 5, 4)
    found = layers(net, x)
    assert [layer.weight for layer in found] == weights
    with FlopCounterMode(display=False) as counter:
        net(x)
    macs = sum(layer.macs for layer in found)
    assert macs == counter.get_total_flops() // 2 // len(x) + (15 if kind is Heads else 0)  # which has no vectors


@pytest.mark.parametrize("profile", ["dyadic", "shift"])
@every_network
def test_they_train_are_saved_and_become_integers(kind, weights, frozen, profile, tmp_path):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(16, 5, 4)
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    q = probq.quantize(net, x, probq.Plan(ladder(2, 4, 8), profile=profile, gates="channel"))
    owned = [name for name in dict.fromkeys(weights) if name.endswith("layer.weight")]
    assert [note.split()[0] for note in q.notes if "weight of its own" in note] == owned
    assert [n for n, p in q.net.named_parameters() if not p.requires_grad] == frozen
    probq.fit(q, [(x, net(x).detach())] * 2, probq.Budget(percent=4), epochs=1, progress=False, seed=0)
    q.eval()
    assert_exact(q, 3 * x, tmp_path)
    torch.testing.assert_close(q(x.double()), decided_copy(q, q.mode())(x.double()), rtol=1e-9, atol=1e-9)
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(probq.load(tmp_path / "q.safetensors", net).eval()(x), q(x))
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())


def test_views_are_told_from_what_only_lies_in_the_same_memory():
    base = torch.randn(2, 3, 4)
    assert arrangement(base.permute(0, 2, 1).flatten(0, 1), base) is None  # a copy
    assert arrangement(base.permute(2, 0, 1).flatten(1), base) == [2, 0, 1]
    assert arrangement(base.reshape(6, 4), base) == [0, 1, 2]
    assert arrangement(base.reshape(4, 6), base) is None  # a row would end within an axis
    assert arrangement(base[:1].reshape(3, 4), base) is None
    assert arrangement(torch.randn(2, 3), torch.randn(2, 3)) is None
