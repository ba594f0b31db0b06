"""Numbers in another order, the largest of several, and magnitudes: exactly those of the network, in every target."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from torch import nn
from torch.nn import functional as F

import probq

X = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Two convolutions, a function of what they compute, and a convolution."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Conv2d(1, 4, 3, padding=1) for _ in range(2))
        self.function = function
        self.c = nn.Conv2d(function(self.a(X), self.b(X)).shape[1], 3, 1)

    def forward(self, x):
        return self.c(self.function(self.a(x), self.b(x)))


ORDERS = {
    "pixel shuffle": lambda a, b: F.pixel_shuffle(a, 2) + F.pixel_shuffle(b, 2),
    "pixel unshuffle": lambda a, b: F.pixel_unshuffle(a.relu() + b, 3),
    "channel shuffle": lambda a, b: F.channel_shuffle(torch.cat([a, b], 1), 2),
    "flip": lambda a, b: a.flip(2) + b.flip((-1, 1)),
    "roll": lambda a, b: torch.roll(a, (1, -2), (2, 3)) + b.roll(1, -1),
    "select": lambda a, b: a[:, :, 2].unsqueeze(2) + b.select(3, -1).unsqueeze(3),
    "unbind": lambda a, b: torch.stack([one + b[:, 0] for one in a.unbind(1)[1:]], 1),
    "expand": lambda a, b: a.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6) + b,
    "repeat": lambda a, b: a.repeat(1, 2, 1, 3) + torch.cat([b, a], 1).tile(1, 1, 1, 3),
    "movedim": lambda a, b: a.movedim(1, 3).movedim(3, 1) + b.swapaxes(2, 3),
    "reflect": lambda a, b: F.pad(a, (1, 2, 0, 3), mode="reflect") + F.pad(b, (0, 3, 1, 2), mode="reflect"),
    "replicate": lambda a, b: F.pad(a, (1, 2, 2, 1), mode="replicate") + F.pad(b, (2, 1, 1, 2), mode="replicate"),
    "circular": lambda a, b: F.pad(a, (1, 2, 3, 1), mode="circular") + F.pad(b, (1, 2, 3, 1), mode="circular"),
    "average without padding": lambda a, b: F.avg_pool2d(a - b, 3, 2, 1, count_include_pad=False),
    "average to the end": lambda a, b: F.avg_pool2d(a, 3, 2, ceil_mode=True) - F.avg_pool2d(b, 4, 3, 1, ceil_mode=True),
    "largest": lambda a, b: a.amax((2, 3), keepdim=True) + b.amax(1, keepdim=True),
    "least": lambda a, b: a.amin((1, 3), keepdim=True) + b.amin(2).unsqueeze(2),
    "larger": lambda a, b: torch.maximum(a, b) - torch.minimum(a, -b),
    "magnitude": lambda a, b: a.abs() - (b - 0.5).abs_(),
    "largest of an axis": lambda a, b: (
        (torch.max(a, b) - a.min(-b)).max(1, True).values + torch.fmax(a, b).min(1, True)[0]
    ),
    "limits that are computed": lambda a, b: a.clamp(min=b, max=b + 1) - 2 * torch.sign(b - a),
    "lists of indices": lambda a, b: a[:, [3, 0, 0], [[0], [5]]] + b[:, torch.tensor([1, -1])][:, :, [4, 0, 1]],
    "selected indices": lambda a, b: a.index_select(2, torch.tensor([5, 0])) + b.repeat_interleave(2, 2)[:, :, :2],
    "joined by other names": lambda a, b: torch.hstack([a, b]) + torch.concat([b, a], 1).fliplr(),
    "linear": lambda a, b: (
        F.interpolate(a, scale_factor=2, mode="bilinear") + F.interpolate(b, size=12, mode="nearest")
    ),
    "linear by three and four": lambda a, b: F.interpolate(a - b, scale_factor=(3, 4), mode="bilinear"),
    "linear rows": lambda a, b: F.interpolate((a - b).flatten(2), scale_factor=5, mode="linear").unsqueeze(2),
    "uneven averages": lambda a, b: F.adaptive_avg_pool2d(a, (4, 5)) - F.adaptive_avg_pool2d(b, (4, 1)),
    "more averages than numbers": lambda a, b: F.adaptive_avg_pool2d(a + b, 8),
    "uneven maxima": lambda a, b: (
        F.adaptive_max_pool2d(a, (4, 3)) + F.max_pool2d(b, (3, 2), return_indices=True)[0][:, :, [0, 1, 0, 0]]
    ),
    "a part set": lambda a, b: _set(a, b),
    "upper limit": lambda a, b: a.clamp_max(0.5) + b.clamp_min(-0.25),
}


def _set(a, b):
    """Numbers are assigned to a part, and a part of a tensor of zeros is computed."""
    a, room = a.clone(), torch.zeros(len(b), 4, 6, 8)
    a[:, 1:3] = 0.5
    room[..., 1:7] = b
    return a + room[..., :6]


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("function", ORDERS.values(), ids=ORDERS)
def test_integers_are_what_the_network_computes(function, profile, tmp_path):
    q = probq.quantize(Net(function).eval(), X, probq.Plan(profile=profile))
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    (a,) = q.sample(1, seed=1)
    assert_exact(q.at(a).eval(), torch.cat([X, 3 * X]), tmp_path)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolutions_pad_the_network_s_own_input(mode):
    layers = [nn.Conv2d(1, 4, 3, padding=2, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    torch.manual_seed(0)
    q = probq.quantize(nn.Sequential(*layers).eval(), X)
    model = probq.lower(q)
    assert np.array_equal(model(3 * X) * model.output_scale, q(3 * X.double()).detach().numpy())


REFUSED = {
    "flip of the batch": (lambda a, b: a.flip(0) + b, "flip in the network .*reorders the batch"),
    "roll of all": (lambda a, b: a.roll(1) + b, "roll in the network .*name the axes"),
    "windows in the batch": (
        lambda a, b: (a + b).unflatten(2, (2, -1)).movedim(2, 1).flatten(0, 1),
        "changes the batch axis; keep pieces of an example, such as windows, on an axis behind it",
    ),
    "many pieces": (lambda a, b: (a + b).flatten(1).flip(1).unflatten(1, (4, 6, 6)), "144 pieces"),
    "larger of all": (lambda a, b: a + b.max(), "max in the network .*changes the batch axis"),
    "lists apart": (
        lambda a, b: a[:, [0, 1], :, [2, 3]].movedim(0, 1).unsqueeze(2),
        "index in the network .*batch axis",
    ),
    "computed indices": (lambda a, b: a[:, :, (b[0, 0] * 0).long().flatten()], "changes the batch axis"),
    "aligned corners": (
        lambda a, b: F.interpolate((a + b).flatten(2), scale_factor=2, mode="linear", align_corners=True).unsqueeze(3),
        "align_corners=False",
    ),
    "sign of an average": (lambda a, b: a.mean(1, keepdim=True).sign() + b, "sign in the network .*take a sum"),
    "places of means": (
        lambda a, b: a.mean(2, True).max(1, True)[1] + b,
        "max in the network .*its indices have no integer form",
    ),
    "comparison of means": (lambda a, b: torch.where(a.mean(1, True) > 0, a, b), "gt in the network .*an average"),
    "root": (lambda a, b: torch.rsqrt(a.relu() + 1) + b, "rsqrt in the network .*in a normalisation alone"),
    "deviation": (lambda a, b: a.std((2, 3), keepdim=True) + b, "std in the network .*in a normalisation alone"),
    "largest of the batch": (lambda a, b: a + b.amax(0), "batch"),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_integer_form_says_so(function, message):
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(probq.quantize(Net(function).eval(), X))
