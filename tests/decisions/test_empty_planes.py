"""Empty bit planes are dropped: weights are the same to the last bit, and no narrower rung holds the codes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.codebooks import ladder, powers_of_two
from tests.exact_integers import assert_exact

X = torch.linspace(-1, 1, 60).reshape(20, 3)


def decided(codes: Any, width: int, rungs: Any = (0, 1, 2, 3, 4, 6, 8), **options: Any) -> probq.Quantized:
    """A network whose first weight `[4, 3]` has given codes at a width."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    q = probq.quantize(net, X, probq.Plan(ladder(*rungs), **options))
    for name, quantizer in q.named_quantizers():
        quantizer.fix(width if name == "0.weight" else quantizer.ladder.bits[-1])
    weight = q.weights["0.weight"]
    rung = weight.rung(weight.probs().argmax(-1))
    scale = rung.scale.detach().expand(4, 3)
    net = q.net[0]
    net.weight.data = torch.tensor(codes).float() * scale
    return q.at(q.mode()).eval()


LOW = [[4, -8, 0], [12, 4, -4], [0, 0, 4], [8, 8, 4]]  # the two lowest planes are empty: 3 bits, three times as coarse
HIGH = [[1, -2, 0], [3, 1, -1], [0, 0, 1], [2, 2, 1]]  # all but the two lowest are: 3 bits
MIXED = [[64, -64, 0], [3, 1, -1], [2, 2, 0], [0, 0, 0]]  # each channel by itself: 2, 3, 2 and 0 bits


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize(
    ("codes", "width", "wanted", "options"),
    [
        (LOW, 6, 3, {}),
        (LOW, 8, 3, {"scales": "tensor"}),
        (HIGH, 8, 3, {}),
        (MIXED, 8, 3, {}),
        (MIXED, 8, [2, 3, 2, 0], {"gates": "channel"}),
        (np.zeros((4, 3)), 4, 0, {}),
        ([[1, -1, 1], [-1, -1, 1], [1, 1, 1], [1, 1, -1]], 4, 1, {"scales": "tensor"}),
        ([[7, 1, 0]] * 4, 4, 4, {}),
        ([[4, 1, -2]] * 4, 4, 3, {"rungs": (2, powers_of_two(3), 4)}),
    ],
)
def test_widths_fall_and_outputs_stay(
    codes: Any, width: int, wanted: Any, options: Any, profile: str, tmp_path: Path
) -> None:
    q = decided(codes, width, **options, profile=profile)
    narrow = probq.drop_planes(q)
    found = narrow.mode()
    np.testing.assert_array_equal(found.widths["0.weight"], wanted)
    assert torch.equal(narrow(X), q(X))
    assert found.cost() <= q.mode().cost()
    assert probq.drop_planes(narrow).mode() == found
    if np.any(np.asarray(wanted)):
        assert_exact(narrow, X, tmp_path)


def test_a_folded_normalisation_keeps_its_outputs() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    net[1].weight.data = torch.tensor([1.7, -0.6, 0.3])
    x = torch.randn(8, 1, 6, 6)
    for profile in ("shift", "dyadic"):
        q = probq.quantize(net, x, probq.Plan(ladder(2, 3, 8), profile=profile))
        for quantizer in q.quantizers.values():
            quantizer.fix(8)
        q.weights["0.weight"].log2_scale.data[2] += 6.0  # codes of few steps
        q = q.at(q.mode()).eval()
        narrow = probq.drop_planes(q)
        assert narrow.mode().widths["0.weight"] < 8
        assert torch.equal(narrow(x), q(x))


def test_what_shares_its_width_by_a_tie_stays() -> None:
    q = decided(HIGH, 8, tie_weight="all")
    assert probq.drop_planes(q).mode() == q.mode()


def test_a_network_that_is_not_decided_is_refused() -> None:
    q = probq.quantize(nn.Sequential(nn.Linear(3, 2)), X)
    with pytest.raises(probq.ProbqError, match="widths are fixed"):
        probq.drop_planes(q)
