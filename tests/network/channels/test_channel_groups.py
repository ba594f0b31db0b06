"""Which layers share channels, found in networks whose groups are known by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probq.network.channels.groups import channel_groups


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.depth, self.head = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(torch.relu(self.depth(x)).flatten(1))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.shift = nn.Linear(4, 3), nn.Linear(3, 2), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.shift)


def test_sums_and_depthwise_kernels_share_their_channels() -> None:
    found = channel_groups(Residual(), torch.rand(2, 1, 8, 8))
    shared, inner = found["stem"], found["inner"]
    assert shared.makers == ("stem", "outer", "depth")
    assert (shared.norms, shared.readers, shared.count, shared.fixed) == (("norm",), ("inner", "head"), 4, "")
    assert found["outer"] is found["depth"] is shared
    assert (inner.makers, inner.readers, inner.count) == (("inner",), ("outer",), 6)
    assert "outputs of the network" in found["head"].fixed


def test_what_reads_channels_in_other_ways_fixes_them() -> None:
    joined, shifted = channel_groups(Joined(), torch.rand(2, 4)), channel_groups(Shifted(), torch.rand(2, 4))
    assert joined["a"].fixed == joined["b"].fixed == "cat reads them"
    assert shifted["a"].fixed == "a parameter of its own meets them"
    grouped = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 2, 1))
    found = channel_groups(grouped, torch.rand(2, 2, 5))
    assert "groups" in found["0"].fixed
    assert "grouped" in found["1"].fixed
    normalised = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    assert "norm" in channel_groups(normalised, torch.rand(2, 4))["0"].fixed


def test_the_network_is_left_as_it_was() -> None:
    net = Residual().train()
    net.stem.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    channel_groups(net, torch.rand(2, 1, 8, 8))
    assert net.training
    assert not net.stem.weight.requires_grad
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
