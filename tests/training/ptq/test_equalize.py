"""Cross-layer equalization: the same float outputs, and ranges by hand."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import ProbqError
from probq.testing.zoo import Pair, Residual, Twice, lenet5
from probq.training.ptq.neighbours import neighbours


class Branching(nn.Module):
    """The first layer's output is read twice, the second's once through a function that is not homogeneous."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = torch.sigmoid(self.b(x)) + x
        return self.d(F.hardtanh(self.c(y)))


def uneven(net: Any) -> Any:
    """Channels of very different ranges."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            with torch.no_grad():
                module.weight.mul_(
                    torch.exp2(2 * torch.randn(len(module.weight))).reshape(-1, *[1] * (module.weight.dim() - 1))
                )
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    return net.eval()


def networks() -> dict[str, tuple[nn.Module, Tensor, list[tuple[str, str]]]]:
    torch.manual_seed(0)
    x1, x2, flat = torch.randn(20, 2, 12), torch.randn(20, 2, 8, 8), torch.randn(20, 5)
    linear = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4), nn.LeakyReLU(), nn.Linear(4, 3))
    one = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 7, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    mobile = nn.Sequential(
        nn.Conv2d(2, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
        nn.Linear(4, 3),
    )  # fmt: skip
    groups = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU6(), nn.Conv2d(4, 2, 1))
    free = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 2))
    return {
        "linear": (linear, flat, [("0", "3"), ("3", "5")]),
        "one axis": (one, x1, [("0", "3"), ("3", "6")]),
        "depthwise": (mobile, x2, [("0", "3"), ("3", "6"), ("6", "10")]),
        "lenet": (lenet5(), torch.randn(2, 1, 28, 28), [("0", "3"), ("3", "7"), ("7", "9")]),
        "groups and ReLU6": (groups, x2, []),
        "no affine": (free, flat, []),
        "branching": (Branching(), flat[:, :4], []),
        "residual": (Residual(), x2, []),
        "twice": (Twice(), flat[:, :4], []),
        "two outputs": (Pair(), flat[:, :4], []),
    }


@pytest.mark.parametrize("name", networks())
def test_the_float_network_stays_and_ranges_meet(name: str) -> None:
    net, x, expected = networks()[name]
    q = probq.quantize(uneven(net), x, probq.uniform(4, 8, activation=None))
    q = q.at(q.mode())
    assert [(a.name, b.name) for a, b in neighbours(q, x)] == expected
    found = probq.ptq.equalize(q, [x])
    wanted, outputs = ([t.detach() for t in (o if isinstance(o, tuple) else (o,))] for o in (net(x), found.net(x)))
    for one, other in zip(wanted, outputs, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5 * float(one.abs().max()), rtol=1e-5)
    assert found.mode().widths == q.mode().widths
    for first, second in expected:
        ranges = []
        a, b = (found.net.get_submodule(n) for n in (first, second))
        layer = next(m for m in found.layers if m.name == first)
        gain = torch.ones(len(a.weight))
        if layer.norm is not None:
            norm = found.net.get_submodule(layer.norm)
            gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        ranges.append([float((g * w).abs().max()) for g, w in zip(gain, a.weight.detach(), strict=True)])
        layer = next(m for m in found.layers if m.name == second)
        weight = b.weight.detach()
        if layer.norm is not None:
            norm = found.net.get_submodule(layer.norm)
            own = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
            weight = weight * own.reshape(-1, *[1] * (weight.dim() - 1))
        channels, depthwise = len(a.weight), getattr(b, "groups", 1) > 1
        places = weight.shape[1] // channels if not depthwise else 1
        ranges.append([
            float((weight[k] if depthwise else weight[:, k * places : (k + 1) * places]).abs().max())
            for k in range(channels)
        ])  # fmt: skip
        assert ranges[0] == pytest.approx(ranges[1], rel=5e-3)


def test_two_layers_by_hand() -> None:
    """s = sqrt(r1 r2) / r2: 8 and 2, 1 and 4 become 4 and 4, 2 and 2; a dead channel stays."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[8.0, -1.0], [0.5, 1.0], [0.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([4.0, 1.0, 1.0]))
        net[2].weight.copy_(torch.tensor([[-2.0, 4.0, 1.0]]))
    q = probq.quantize(net.eval(), torch.rand(4, 2), probq.uniform(4, 4))
    found = probq.ptq.equalize(q.at(q.mode()), [torch.rand(9, 2)])
    assert found.net[0].weight.tolist() == [[4.0, -0.5], [1.0, 2.0], [0.0, 0.0]]
    assert found.net[0].bias.tolist() == [2.0, 2.0, 1.0]
    assert found.net[2].weight.tolist() == [[-4.0, 2.0, 1.0]]
    assert net[0].weight[0, 0] == 8
    assert q.net[0].weight[0, 0] == 8


def test_scales_are_those_that_the_new_weights_and_inputs_get_anew() -> None:
    """A fresh quantization of the equalised float network."""
    net, x, _ = networks()["depthwise"]
    plan = probq.uniform(4, 4, activation=None)
    q = probq.quantize(uneven(net), x, plan)
    found = probq.ptq.equalize(q.at(q.mode()), [x])
    fresh = probq.quantize(found.net, x, plan)
    for (name, own), (_, other) in zip(found.named_quantizers(), fresh.named_quantizers(), strict=True):
        assert torch.equal(own.scales(), other.scales()), name
    assert all(np.array_equal(codes, fresh.mode().codes[n]) for n, codes in found.mode().codes.items())
    model = probq.lower(found)
    assert np.array_equal(model(x.numpy()) * model.output_scale, found(x.double()).detach().numpy())


def test_weights_with_laws_of_their_own_stay_and_bad_input_is_told() -> None:
    net, x, _ = networks()["linear"]
    q = probq.quantize(uneven(net), x, probq.Plan(weight=probq.codebooks.ladder(2), free_codes=True))
    decided = q.at(q.mode())
    assert probq.ptq.equalize(decided, [x]).mode() == decided.mode()
    with pytest.raises(ProbqError, match="equalize takes a decided network"):
        probq.ptq.equalize(q, [x])
    with pytest.raises(ProbqError, match="equalize needs data"):
        probq.ptq.equalize(decided, [])
