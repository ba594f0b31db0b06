"""One head at several scales with batch normalisation of each, against algebra by hand and torch's own averages."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_integers import assert_exact
from torch import Tensor, nn

import probq


class Head(nn.Module):
    """A convolution that reads an image at two resolutions, with one normalisation of each or one of both."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.last = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.Conv2d(5, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(norms))
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all places, fine ones first."""
        maps = [self.tower(x), self.tower(F.max_pool2d(x, 2))]
        found = [self.last(self.norms[k % len(self.norms)](y).relu()).flatten(2) for k, y in enumerate(maps)]
        return torch.cat(found, 2)


def data() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(n, 2, 6, 6, generator=draw) for n in (12, 7, 9)]


def decided(norms: int, batches: list[Tensor]) -> probq.Quantized:
    q = probq.quantize(Head(norms).eval(), batches[0], probq.uniform(3, 4))
    return probq.ptq.norms(q.at(q.mode()), batches, anew=True)


@pytest.mark.parametrize("norms", [1, 2])
def test_statistics_are_averages_over_the_maps_that_a_norm_sees(norms: int) -> None:
    batches = data()
    q, net = decided(norms, batches), Head(norms)
    scale, step = q.weights["tower.weight"].scales()[0], q.inputs["tower.input"].scales()[0]
    weight = scale * torch.floor(net.tower.weight / scale + 0.5).clamp(-3, 3)
    for norm in net.norms:
        norm.momentum = None  # torch's own average over all calls
    with torch.no_grad():
        for batch in batches:
            for k, x in enumerate((batch, F.max_pool2d(batch, 2))):
                rounded = step * torch.floor(x / step + 0.5).clamp(0, 255)
                net.norms[k % norms](F.conv2d(rounded, weight, padding=1))
    for own, expected in zip(q.net.norms, net.norms, strict=True):
        torch.testing.assert_close(own.running_mean, expected.running_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own.running_var, expected.running_var, atol=1e-5, rtol=1e-5)


def test_scales_share_weights_and_differ_by_the_gains_of_their_norms(tmp_path: Any) -> None:
    q = decided(2, data())
    model = assert_exact(q, 3 * data()[0], tmp_path)
    nodes = {node.name: node for node in model.nodes}
    assert np.array_equal(nodes["tower"].tensors["weight"], nodes["tower@2"].tensors["weight"])
    units = []
    for norm, node in zip(q.net.norms, (nodes["norms.0"], nodes["norms.1"]), strict=True):
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        numbers = {name: tensor.ravel() for name, tensor in node.tensors.items()}
        units.append(numbers["multiplier"] / 2.0 ** numbers["shift"] / gain.detach().numpy())
    grids = np.log2(units[0] / units[1])  # results lie on grids of powers of two
    np.testing.assert_allclose(grids, np.rint(grids[0]), atol=2**-11)  # gains round to 12 binary digits


def test_a_fit_learns_one_width_for_all_scales_and_stays_exact(tmp_path: Any) -> None:
    x = data()[0]
    q = probq.quantize(Head(2), x, likelihood=probq.likelihoods.Normal())
    before = [norm.running_mean.clone() for norm in q.net.norms]
    probq.fit(q, [(x, torch.zeros(12, 3, 45))] * 4, probq.Budget(percent=2), epochs=2, progress=False)
    assert q.mode().percent() <= 2
    assert [name for name in q.weights] == ["tower.weight", "last.weight"]
    assert all(not torch.equal(norm.running_mean, own) for norm, own in zip(q.net.norms, before, strict=True))
    assert_exact(q, x, tmp_path)
