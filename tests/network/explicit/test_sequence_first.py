"""Networks that have the sequence as first axis inside, and the batch behind it, are lowered too."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from torch import nn
from torch.nn import functional as F

import probq

X = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0))


class Turned(nn.Module):
    """A transformer layer of torch with the sequence first, and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.embed, self.head = forward, nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(5, 1, 8))

    def forward(self, x):
        return self.head(self.own(self, self.embed(x)))


def _halves(y):
    return torch.cat([y.split([2, 3])[1][0, :, :4], y.chunk(2, -1)[1][1]], -1)


FORWARDS = {
    "queries, keys and values": lambda net, x: torch.cat(
        net.layer(x.transpose(0, 1)).transpose(0, 1).reshape(-1, 5, 2, 4).permute(2, 0, 1, 3).unbind(0)[::-1], -1
    ).mean(1),
    "split": lambda net, x: _halves(net.layer(x.transpose(0, 1))),
    "time by time": lambda net, x: sum(net.layer(x.transpose(0, 1)).unbind()),
    "positions and a mean": lambda net, x: net.layer(x.transpose(0, 1) + net.places).mean(0),
    "class token": lambda net, x: net.layer(torch.cat([net.token.expand(1, len(x), 8), x.transpose(0, 1)]))[0],
    "largest and a part": lambda net, x: F.gelu(net.layer(0.1 * x.permute(1, 0, 2)))[1:3].amax(0),
    "turned back": lambda net, x: net.layer(x.permute(1, 0, 2).contiguous()).transpose(0, 1).flatten(1)[:, 8:16],
}


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_integers_are_what_the_network_computes(forward, profile, tmp_path):
    q = probq.quantize(Turned(forward).eval(), X, probq.Plan(profile=profile))
    assert_exact(q, torch.cat([X, 3 * X]), tmp_path)


class Tokens(nn.Module):
    """Embeds tokens [time, batch], and tells of the last state of an LSTM."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.cell, self.head = nn.Embedding(9, 4), nn.LSTM(4, 5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.head(self.cell(self.embed(tokens))[0][-1])


class Wrapped(nn.Module):
    """What is advised for networks whose batch is the second axis."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.transpose(0, 1))


@pytest.mark.filterwarnings("ignore:.*(stays float|will refuse)")
@pytest.mark.parametrize(
    ("net", "x"),
    [
        (Tokens(), torch.arange(40).reshape(5, 8) % 9),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6), nn.Linear(4, 3)), X.transpose(0, 1)),
    ],
    ids=["lstm", "attention"],
)
def test_a_batch_as_second_axis_is_refused_and_what_is_advised_is_lowered(net, x):
    with pytest.warns(UserWarning, match="takes the batch as its second axis"):
        q = probq.quantize(net.eval(), x)
    with pytest.raises(probq.ProbqError, match=r"net\(x.transpose\(0, 1\)\)"):
        probq.lower(q)
    inputs = x.transpose(0, 1).contiguous()
    q = probq.quantize(Wrapped(net).eval(), inputs)
    model = probq.lower(q)
    found = model.real_output(model(inputs))
    assert np.allclose(found, q(inputs).detach().numpy(), atol=1e-6)
    assert len(found) == len(inputs) or found.shape[1] == len(inputs)


def test_a_sequence_is_returned_first():
    q = probq.quantize(Turned(lambda net, x: net.layer(x.transpose(0, 1))).eval(), X)
    model = probq.lower(q)
    assert model.axes == {"output": 1}
    assert model.run(model.quantize_input(X)).shape[:2] == tuple(X.shape[:2]) != model(X).shape[:2]
    assert np.array_equal(model.real_output(model(X)), q(X.double()).detach().numpy())


REFUSED = {
    "reshaped": (
        lambda net, x: x.transpose(0, 1).reshape(5, -1, 2, 4).mean(0).flatten(1),
        "reshape .*not its first axis",
    ),
    "two places": (lambda net, x: (x.transpose(0, 1)[:1] + x[:, :1]).mean(1), "another axis of each"),
    "over the batch": (lambda net, x: x.transpose(0, 1).mean(1), "mean in the network .*batch axis"),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("forward", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_form_with_the_batch_elsewhere_is_refused(forward, message):
    net = Turned(forward).eval()
    del net.layer
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(probq.quantize(net, X))
