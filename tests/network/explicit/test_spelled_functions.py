"""Functions that are spelled out by products and normalisations become integers, and are what torch computes."""

import pytest
import torch
import torch.nn.functional as F
from exact_integers import assert_exact
from torch import nn

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.network.explicit.functions import EXPLICIT, is_spelled_out


class Between(nn.Module):
    """A function between a convolution and a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.a, self.function = nn.Conv2d(2, 4, 3), function
        self.scale, self.shift = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.Parameter(torch.randn(4, 1, 1))
        self.b = nn.LazyLinear(3)

    def forward(self, x):
        return self.b(self.function(self, self.a(x)).flatten(1))


FILLED = torch.tensor([0.5, -0.25, 0.75, 1.0])
FUNCTIONS = {
    "channels of length 1": lambda net, x: F.normalize(x),
    "rows of length 1": lambda net, x: F.normalize(x, dim=-1),
    "cosines": lambda net, x: F.cosine_similarity(x[:, :2], x[:, 2:], dim=1),
    "aligned corners": lambda net, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": lambda net, x: F.interpolate(x, scale_factor=(2, 3), mode="bicubic"),
    "no whole factors": lambda net, x: F.interpolate(x, size=(6, 9), mode="bilinear"),
    "affine": lambda net, x: torch.addcmul(net.shift, net.scale, x),
    "filled": lambda net, x: torch.where(FILLED > 0.6, x, FILLED),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("profile", ["dyadic", "shift"])
def test_the_integers_are_what_the_decided_network_computes(function, profile, tmp_path):
    torch.manual_seed(0)
    net, x = Between(function).eval(), torch.randn(8, 2, 6, 6)
    net(x)
    q = probq.quantize(net, x, Plan(ladder(2, 4, 8), profile=profile))
    assert not any("float" in note for note in q.notes)
    assert_exact(q.eval(), 3 * x, tmp_path)


CALLS = [
    ("normalize", F.normalize, (torch.randn(3, 4, 5),), {}),
    ("normalize", F.normalize, (torch.randn(3, 4, 5), 2, -1), {"eps": 1e-6}),
    ("cosine_similarity", F.cosine_similarity, (torch.randn(3, 4, 5), torch.randn(3, 4, 5)), {"dim": 2}),
    ("interpolate", F.interpolate, (torch.randn(2, 3, 4, 5), 7), {"mode": "bilinear", "align_corners": True}),
    ("interpolate", F.interpolate, (torch.randn(2, 3, 4, 5),), {"scale_factor": 2, "mode": "bicubic"}),
    ("interpolate", F.interpolate, (torch.randn(2, 3, 4, 5),), {"scale_factor": 1.6, "mode": "bilinear"}),
    ("addmm", torch.addmm, (torch.randn(4), torch.randn(3, 2), torch.randn(2, 4)), {"beta": 2, "alpha": 0.5}),
    ("embedding_bag", F.embedding_bag, (torch.arange(6).reshape(2, 3), torch.randn(7, 4)), {"mode": "sum"}),
    ("embedding_bag", F.embedding_bag, (torch.arange(6).reshape(2, 3), torch.randn(7, 4)), {}),
]


@pytest.mark.parametrize(("kind", "function", "args", "kwargs"), CALLS)
def test_what_is_spelled_out_is_what_torch_computes(kind, function, args, kwargs):
    assert is_spelled_out(kind, args, kwargs)
    torch.testing.assert_close(EXPLICIT[kind][0](*args, **kwargs), function(*args, **kwargs))


def test_other_calls_are_left_as_they_are():
    x = torch.randn(2, 3, 4, 5)
    assert not is_spelled_out("interpolate", (x,), {"scale_factor": 2, "mode": "bilinear"})  # which weighs places alike
    assert not is_spelled_out("interpolate", (x,), {"scale_factor": 1.5})
    assert not is_spelled_out("interpolate", (x, 2), {"mode": "bicubic", "antialias": True})
    assert not is_spelled_out("normalize", (x,), {"p": 1})
    assert not is_spelled_out("embedding_bag", (torch.arange(3), torch.randn(7, 4), torch.tensor([0, 2])), {})


class Tied(nn.Module):
    """Bags of embeddings, and scores by the same weight, along whose other axis those have their scales."""

    def __init__(self):
        super().__init__()
        self.bags, self.tokens = nn.EmbeddingBag(9, 4, mode="sum"), nn.Embedding(9, 4)
        self.hidden, self.scores = nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.scores.weight = self.tokens.weight

    def forward(self, x):
        return self.scores(self.hidden(self.bags(x) + self.tokens(x[:, 0])).relu())


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_embeddings_tied_to_scores_and_bags_become_integers(gates, tmp_path):
    torch.manual_seed(0)
    x = torch.randint(9, (16, 3))
    q = probq.quantize(Tied().eval(), x, Plan(ladder(2, 4, 8), gates=gates))
    assert {"embedding_bag().embedding().layer", "tokens"} < {layer.name.removeprefix("bags.") for layer in q.layers}
    assert_exact(q.eval(), x, tmp_path)
