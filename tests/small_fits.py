"""A small network that rules and chance constraints are tried on, and a short fit of it."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

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


def trained_on_digits(net: nn.Module, rate: float, epochs: int) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Train a float network in place; the images, the labels, and batches of the first 1,280."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
    batches = list(zip(x[:1280].split(128), y[:1280].split(128), strict=True))
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for a, b in batches * epochs:
        optimizer.zero_grad()
        F.cross_entropy(net(a), b).backward()
        optimizer.step()
    return x, y, batches
