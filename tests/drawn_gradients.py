"""Gradients of an estimator, drawn many times, beside the exact one by enumeration; and a small law of codes."""

import math
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from probq.codebooks import ternary
from probq.network.distributions.codes import Codes
from probq.testing import Small, enumerate_joint, law_parameters, posterior_of


def law(weights: int = 4) -> Codes:
    location = torch.linspace(-1.2, 1.1, weights, requires_grad=True)
    return Codes(location, torch.tensor(1.0), ternary(), torch.tensor(0.4), nearest=3)


def gradients(small: Small, estimator: Any, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of an estimator's gradient over draws, its standard error, and the exact gradient, as vectors."""
    q, x = small.quantized(estimator=estimator)
    y = small.targets(q, x)
    with torch.no_grad():
        q.weights[next(iter(q.weights))].logits.fill_(0.3)
    parameters = list(law_parameters(q).values())
    exact = torch.autograd.grad(-enumerate_joint(q, x, y).elbo(*posterior_of(q)), parameters)
    elbo = TraceMeanField_ELBO()
    rows = []
    for _ in range(draws):
        found = torch.autograd.grad(elbo.differentiable_loss(q.model, q.guide, x, y), parameters, allow_unused=True)
        given = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        rows.append(torch.cat([g.reshape(-1) for g in given]))
    drawn = torch.stack(rows).double()
    return drawn.mean(0), drawn.std(0) / math.sqrt(draws), torch.cat([g.reshape(-1) for g in exact]).double()
