"""Plans and networks that lowering and every exporter are tested with."""

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq.codebooks import ladder, learned, levels, powers_of_two

PLANS = {
    "tensor": probq.Plan(weight=ladder(0, 1, 2, 4, 8)),
    "one scale": probq.Plan(weight=ladder(1, 2, 4, 8), scales="tensor"),
    "channel": probq.Plan(weight=ladder(0, 1, 2, 4, 8), gates="channel"),
    "weight": probq.Plan(weight=ladder(0, 1, 2, 4), gates="weight"),
    "powers of two": probq.Plan(weight=ladder(powers_of_two(3), powers_of_two(4))),
    "given levels": probq.Plan(weight=ladder(levels([-1.5, -0.25, 0.25, 1.5]), 4)),
    "learned levels": probq.Plan(weight=ladder(learned([-1.5, -0.4, 0.4, 1.5]), 4)),
    "wide": probq.Plan(weight=ladder(8), input=ladder(12)),
    "narrow": probq.Plan(weight=ladder(1, 2), input=ladder(1, 2)),
}
SHIFTING = {name: replace(plan, profile="shift") for name, plan in PLANS.items()}  # as FPGA flows take them
PLANS |= {f"{name}, shift": SHIFTING[name] for name in ("tensor", "channel", "narrow")}


class Residual(nn.Module):
    """Convolutions of several kinds, batch norm, two kinds of shortcut, averages that are no powers of two."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, (3, 1), groups=8, padding=(1, 0), dilation=(1, 2))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.fc, self.out = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(F.relu(x + self.norm2(self.conv(x))), 2)
        x = F.relu(self.up(F.relu6(self.depthwise(x))))
        x = F.avg_pool2d(x, 3).mean((2, 3))
        return self.out(F.hardtanh(self.fc(x)))


class Text(nn.Module):
    """Embedding, one-dimensional convolution with "same" padding, batch norm behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.norm = (
            nn.Embedding(20, 6),
            nn.Conv1d(6, 8, 3, padding="same", dilation=2),
            nn.BatchNorm1d(8),
        )
        self.fc, self.norm2, self.out = nn.Linear(40, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(self.embedding(x).transpose(1, 2))))
        return self.out(F.relu(self.norm2(self.fc(F.avg_pool1d(x, 2).flatten(1)))))


class Branches(nn.Module):
    """Concatenation of branches with different steps, and a shared layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.shared, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([F.relu(self.a(x)), self.b(x)], 1)
        return self.out(F.relu(self.shared(self.shared(x))))


def images(n):
    return torch.rand(n, 3, 12, 12)


NETWORKS = {
    "residual": (Residual, images),
    "text": (Text, lambda n: torch.randint(0, 20, (n, 10))),
    "branches": (Branches, lambda n: torch.randn(n, 6)),
    "signed mlp": (
        lambda: nn.Sequential(nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)),
        lambda n: torch.randn(n, 9),
    ),
    "volume": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, stride=2, padding=1), nn.ReLU6(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
        ),
        lambda n: torch.randn(n, 2, 6, 6, 6),
    ),
}


def trained(make):
    """A network with batch-norm statistics that are not trivial, some gains negative."""
    torch.manual_seed(0)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.2, 2)
            module.weight.data.normal_(0.7, 0.5)
            module.bias.data.normal_(0, 0.3)
    return net.eval()


@cache
def lowered(network, plan, draws=0):
    """Integer models of a network of `NETWORKS` at its mode and at some draws, and 50 inputs."""
    make, data = network
    q = probq.quantize(trained(make), data(16), plan=plan)
    return [probq.lower(q, a) for a in [q.mode(), *(q.sample(draws, seed=1) if draws else [])]], data(50).numpy()
