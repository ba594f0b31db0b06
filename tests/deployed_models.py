"""Integer models of every deployed network, in both profiles: what every target is tried on."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

import probq
from probq import IntegerModel
from probq.codebooks import ladder
from probq.integer.lowering.switches.several_models import switched
from probq.testing import deployed, deployed_structures
from probq.utils.structures.walk import leaves, map_leaves

PROFILES = ("shift", "dyadic")
SMALL = "perceptron"


def plain() -> nn.Sequential:
    """What every target takes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def networks() -> Iterator[tuple[str, nn.Module, Any]]:
    yield from deployed()
    yield from deployed_structures()
    torch.manual_seed(0)
    yield "plain", plain().eval(), torch.randn(16, 1, 12, 12)
    yield "perceptron", nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(16, 5)


SWITCH = "widths that depend on the input"
NETWORKS = {name: (net, example) for name, net, example in networks()}
NETWORKS[SWITCH] = NETWORKS[SMALL]  # at two assignments
STRUCTURES = [name for name, _, _ in deployed_structures()]


def beyond(x: Any) -> Any:
    """A tensor of the example, and three times the same; whole numbers twice."""
    if not isinstance(x, torch.Tensor):
        return x
    return torch.cat([x, 3 * x if x.is_floating_point() else x], 0 if len(x) == 16 else 1)


def arrays(outputs: Any) -> list[np.ndarray]:
    """The arrays of one output, or of a structure or a tuple of them."""
    return [each for each in leaves(outputs) if isinstance(each, np.ndarray)]


def switch(q: probq.Quantized, example: torch.Tensor) -> IntegerModel:
    """A network at two assignments, and a layer that chooses one of them for each example."""
    torch.manual_seed(4)
    chosen = probq.quantize(nn.Linear(5, 2).eval(), example, probq.Plan(ladder(4), ladder(4), profile="shift"))
    return switched(probq.lower(chosen), np.zeros(2, np.int64), [probq.lower(q, a) for a in q.sample(2, seed=1)], {})


@cache
def lowered(network: str, profile: str) -> tuple[IntegerModel, Any, list[np.ndarray]]:
    """A random decision's integer model, integers far beyond the example, and its outputs."""
    net, example = NETWORKS[network]
    plan = probq.Plan(weight=ladder(1, 2, 4), input=ladder(2, 4), activation=5, profile=profile)
    q = probq.quantize(net, example, plan=plan)
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    if network == SWITCH:
        model = switch(q, example)
    else:
        (a,) = q.sample(1, seed=1)
        model = probq.lower(q, a)
    x = model.quantize_input(map_leaves(beyond, example))
    return model, x, arrays(model.run(x))
