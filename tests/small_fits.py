"""A small network that rules and chance constraints are tried on, and a short fit of it."""

from typing import Any

import torch
from torch import nn

import probq
from probq import Budget, Plan, Quantized
from probq.cli import demo
from probq.codebooks import ladder

X = torch.linspace(-1, 1, 24).reshape(8, 3)


Y = torch.arange(8) % 2


def network(gates: str = "tensor", rungs: tuple[int, ...] = (1, 2, 4)) -> Quantized:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    q = probq.quantize(net, X, plan=Plan(weight=ladder(*rungs), input=ladder(1, 3), gates=gates))
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(0, 1.5)
    return q


def fitted(seed: int, budget: Budget, **options: Any) -> tuple[Quantized, probq.History]:
    torch.manual_seed(seed)
    data, net = demo.digits(seed), demo.network()
    q = probq.quantize(net, data.train.tensors[0][:64], demo.plan)
    x, y = (tensor[:512] for tensor in data.train.tensors)
    batches = list(zip(x.split(32), y.split(32), strict=True))
    return q, probq.fit(q, batches, budget, 2, search=0.95, seed=seed, progress=False, **options)
