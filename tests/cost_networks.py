"""Two layers with widths that can be enumerated, tied and free: what costs and limits are tried on."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import probq
from probq import Plan, Quantized
from probq.codebooks import ladder
from probq.testing import width_states

WEIGHTS, INPUTS = ladder(0, 1, 2, 4), ladder(1, 2, 4, signed=False)


def moved(q: Quantized, seed: int = 0) -> Quantized:
    """The network with gates away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, quantizer in q.named_sites():
            quantizer.logits.copy_(torch.randn(quantizer.logits.shape, generator=generator))
    return q


def chain(plan: Any = None, seed: int = 0) -> Quantized:
    """Two layers, four widths unless tied."""
    net = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3))
    plan = plan or Plan(weight=WEIGHTS, input=INPUTS, network_input=ladder(2, 4, signed=False))
    return moved(probq.quantize(net, torch.rand(4, 5), plan=plan), seed)


def same(**ties: str) -> Plan:
    return Plan(weight=ladder(1, 2, 4), input=INPUTS, network_input=ladder(2, 4, signed=False), **ties)


NETWORKS: dict[str, Callable[[], Quantized]] = {
    "free": chain,
    "weights tied": lambda: chain(same(tie_weight="all")),
    "weight and input of one layer tied": lambda: chain(same(tie_weight="own", tie_input="own")),
    "one tied across layers": lambda: chain(
        lambda layer: same(tie_weight="x") if layer.name == "0" else same(tie_input="x")
    ),
    "ladders of their own": lambda: chain(
        lambda layer: Plan(weight=ladder(4)) if layer.name == "0" else Plan(weight=WEIGHTS, input=INPUTS)
    ),
}


def choices(q: Quantized) -> Iterator[tuple[float, dict[str, int]]]:
    """Every choice of widths with its probability."""
    for rungs, p in width_states(q):
        yield p, {name: q.quantizer(name).ladder.bits[k] for name, k in rungs.items()}
