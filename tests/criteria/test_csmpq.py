"""Class separability by hand, and counts against features that the network's own modules give."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq import Plan, ProbqError, criteria
from probq.codebooks import ladder
from probq.criteria.csmpq import separability

PLAN = Plan(weight=ladder(2, 8), input=ladder(4, 8, signed=False))


def test_separability_by_hand() -> None:
    own = np.array([[4.0, 0.0], [0.0, 3.0]])  # a channel for each class: tf is 1, and each is frequent in one of two
    assert separability(own) == pytest.approx(math.log(3 / 2))
    assert separability(np.array([[1.0, 1.0], [5.0, 5.0]])) == 0  # frequent everywhere
    # tf of the classes: (3/4, 1/4, 0) and (1/2, 0, 1/2), mean 1/3: the first channel is frequent in both classes, the
    # second in none, the third in one
    mixed = np.array([[3.0, 1.0, 0.0], [2.0, 0.0, 2.0]])
    assert separability(mixed) == pytest.approx((0.25 * math.log(3 / 1) + 0.5 * math.log(3 / 2)) / 2)
    assert separability(np.array([[0.0, 0.0], [1.0, 0.0]])) == pytest.approx(math.log(3 / 2) / 2)  # a silent class


def test_energy_is_that_of_the_features_of_each_class() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(30, 1, 6, 6), torch.arange(30) % 3 - 1  # a target of -1 is not observed
    q = probq.quantize(net, x, PLAN)
    energy = criteria.csmpq(q, [(x[:11], y[:11]), (x[11:], y[11:])], progress=False)
    seen = {0: net[:1], 3: net[:4], 5: net}
    found = dict(zip(energy.names, energy.unary, strict=True))
    for place, part in seen.items():
        with torch.no_grad():
            fired = F.relu(part(x)).double()
        fired = fired.sum((2, 3)) if fired.dim() == 4 else fired
        counts = np.stack([fired[y == k].sum(0).numpy() for k in (0, 1)])
        np.testing.assert_allclose(found[f"{place}.weight"], [6 * separability(counts), 0], rtol=1e-6)
    np.testing.assert_allclose(found["3.input"] / 4, found["3.weight"] / 6)


def test_what_is_no_class_is_told() -> None:
    x = torch.rand(8, 4)
    q = probq.quantize(nn.Linear(4, 3), x, PLAN)
    with pytest.raises(ProbqError, match="needs labels"):
        criteria.csmpq(q, [x], progress=False)
    with pytest.raises(ProbqError, match="one class for each example"):
        criteria.csmpq(q, [(x, torch.rand(8))], progress=False)
    with pytest.raises(ProbqError, match="targets of several outputs"):
        criteria.csmpq(q, [(x, (torch.arange(8), torch.arange(8)))], progress=False)
    with pytest.raises(ProbqError, match="8 examples have 1"):
        criteria.csmpq(q, [(x, torch.zeros(8, dtype=torch.long))], progress=False)
