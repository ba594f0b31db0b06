"""Integer models of every deployed network, in both profiles: what every target is tried on."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import nn

import probq
from probq import IntegerModel
from probq.codebooks import ladder
from probq.testing import deployed

PROFILES = ("shift", "dyadic")
SMALL = "perceptron"


def plain() -> nn.Sequential:
    """What every target takes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def networks() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    yield from deployed()
    torch.manual_seed(0)
    yield "plain", plain().eval(), torch.randn(16, 1, 12, 12)
    yield "perceptron", nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(16, 5)


NETWORKS = {name: (net, example) for name, net, example in networks()}


@cache
def lowered(network: str, profile: str) -> tuple[IntegerModel, np.ndarray, np.ndarray]:
    """A random decision's integer model, integers far beyond the example, and its output."""
    net, example = NETWORKS[network]
    plan = probq.Plan(weight=ladder(1, 2, 4), input=ladder(2, 4), activation=5, profile=profile)
    q = probq.quantize(net, example, plan=plan)
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    (a,) = q.sample(1, seed=1)
    model = probq.lower(q, a)
    x = model.quantize_input(torch.cat([example, 3 * example]).double())
    return model, x, model.run(x)
