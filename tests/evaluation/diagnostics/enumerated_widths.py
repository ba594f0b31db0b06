"""A small posterior whose widths can be enumerated, and what the enumeration gives."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import probq
from probq import cost as costs
from probq.codebooks import ladder


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def example() -> Tensor:
    return torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def quantized(gates: str = "tensor", rungs: tuple[int, ...] = (0, 2, 8)) -> probq.Quantized:
    plan = probq.Plan(weight=ladder(*rungs), input=ladder(1, 2, 4, 8, signed=False), gates=gates)
    q = probq.quantize(network(), example(), plan)
    q.calibrated = True  # as after a fit
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.copy_(torch.randn(quantizer.logits.shape, generator=generator))
    return q


def by_hand(logits: Tensor) -> np.ndarray:
    """Stick breaking in plain Python, `[gates, B]`."""
    rows = []
    for gates in logits.detach().double().reshape(-1, logits.shape[-1]).tolist():
        open_ = [1 / (1 + math.exp(-g)) for g in gates] + [0.0]
        rows.append([math.prod(open_[:k]) * (1 - open_[k]) for k in range(len(open_))])
    return np.array(rows)


def enumerated(q: probq.Quantized, cost: Any = costs.bops) -> tuple[np.ndarray, np.ndarray]:
    """Cost and probability of every combination of rungs (one gate a quantizer)."""
    named = list(q.named_quantizers())
    found = []
    for rungs in itertools.product(*[range(len(z.ladder)) for _, z in named]):
        chosen = list(zip(named, rungs, strict=True))
        widths = {name: z.ladder.bits[k] for (name, z), k in chosen}
        probability = math.prod(by_hand(z.logits)[0][k] if len(z.ladder) > 1 else 1.0 for (_, z), k in chosen)
        found.append((costs.total(q.layers, widths, cost), probability))
    return np.array([c for c, _ in found]), np.array([p for _, p in found])
