"""Networks that do not call all of their layers on all examples, or cannot run on them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError, criteria, ptq

pytestmark = pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*energies of loss are negative")


class Sometimes(nn.Module):
    """The middle layer is called where the first number is large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(self.b(h).relu() if x[0, 0] > 0.5 else h)


torch.manual_seed(0)
WITHOUT, Y = torch.rand(32, 5) / 2, torch.arange(32) % 3
WITH = WITHOUT + 0.5


@pytest.mark.parametrize("name", [n for n in criteria.__all__ if n not in ("ompq", "csmpq")])
def test_criteria_tell_which_layer_no_example_reaches(name: str) -> None:
    with pytest.raises(ProbqError, match=r"no example reaches b\.input; give those on which the whole network runs"):
        getattr(criteria, name)(probq.quantize(Sometimes(), WITH), [(WITHOUT, Y)], progress=False)


@pytest.mark.parametrize("function", [ptq.gpfq, ptq.bias])
def test_rounding_tells_which_layer_no_example_reaches(function: Any) -> None:
    q = probq.quantize(Sometimes(), WITH, probq.uniform(2, 8))
    with pytest.raises(ProbqError, match="no example reaches b; give those on which the whole network runs"):
        function(q.at(q.mode()), [WITHOUT])


def test_learned_rounding_takes_batches_that_miss_a_layer() -> None:
    """By the network's own outputs, the learned rounding is nearer to the float network than the nearest one."""
    q = probq.quantize(Sometimes(), WITH, probq.uniform(2, 8))
    nearest = q.at(q.mode())
    learned = ptq.reconstruct(nearest, [WITH, WITHOUT], steps=150, progress=False)

    def error(own: Any) -> float:
        with torch.no_grad():
            return sum(float((own(x) - q.net(x)).square().sum()) for x in (WITH, WITHOUT))

    assert (learned.mode().codes["b.weight"] != nearest.mode().codes["b.weight"]).any()
    assert error(learned) < error(nearest)


@pytest.mark.parametrize("function", [getattr(ptq, name) for name in ptq.__all__ if name != "norms"])
def test_examples_on_which_the_network_cannot_run_are_told(function: Any) -> None:
    q = probq.quantize(Sometimes(), WITH, probq.uniform(2, 8))
    for x in (WITH[:, :3], WITH.double()):
        with pytest.raises(ProbqError, match=r"the network cannot run on a batch of shapes \[\(32, \d\)\]"):
            function(q.at(q.mode()), [x])


def test_what_the_network_catches_does_not_hide_where_a_unit_ends() -> None:
    """The same network with an `except` that gives zeros is rounded as the one that has none."""

    class Tries(Sometimes):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:
                return x.new_zeros(len(x), 3)

    found = []
    for net in (Sometimes(), Tries()):
        q = probq.quantize(net, WITH, probq.uniform(2, 8))
        found.append(ptq.reconstruct(q.at(q.mode()), [WITH], progress=False).mode().codes)
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
