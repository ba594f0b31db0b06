"""A network that works in place on its input leaves the data as they were, and computes what another one does."""

import numpy as np
import torch
from torch import Tensor, nn

import probq
from probq import Quantized


class Scaled(nn.Module):
    """Two layers behind a scaled input, which is scaled in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.last, self.in_place = nn.Linear(6, 8), nn.Linear(8, 3), in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(2).sub_(1) if self.in_place else x * 2 - 1
        return self.last(torch.relu(self.first(x)))


def results(in_place: bool, x: Tensor) -> tuple[Quantized, probq.Energy, Tensor]:
    """The network after a fit, its energy before, and its outputs, all from the same data."""
    torch.manual_seed(0)
    net, y = Scaled(in_place).eval(), torch.arange(len(x)) % 3
    q = probq.quantize(net, x)
    energy = probq.criteria.loss(q, [(x, y)], progress=False)
    probq.fit(q, [(x, y)], epochs=4, progress=False, seed=0)
    return q, energy, q(x)


def test_data_stay_and_all_is_as_out_of_place(recwarn) -> None:  # type: ignore[no-untyped-def]
    x = torch.rand(32, 6, generator=torch.Generator().manual_seed(1))
    (one, first, inside), before = results(True, given := x.clone()), x
    other, second, outside = results(False, x)
    assert torch.equal(given, before)
    assert torch.equal(inside, outside)
    assert all(map(np.array_equal, first.unary, second.unary))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
