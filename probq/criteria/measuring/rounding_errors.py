"""Rounding errors are what each rung of each quantizer changes in the float network's weights and inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from probq.criteria.measuring.float_network import float_weight, opened
from probq.criteria.measuring.perturbed import Batch
from probq.criteria.measuring.quantizers_of import quantizers_of
from probq.network.distributions.codes import Codes
from probq.network.program.program import Program
from probq.network.quantizers.base import Quantizer, Rung
from probq.utils.structures.tensors import rows_of


@dataclass
class SquaredErrors:
    """Squares are summed here over all numbers that a quantizer rounds for one example; they are of these kinds.

    Attributes:
        errors: squared error on each rung, `[B]`.
        norm: the numbers' own squares.
        count: how many there are.
    """

    errors: np.ndarray
    norm: float
    count: float


def members(q: Program, of: str) -> dict[str, list[str]]:
    """Return the quantizers that a criterion looks at by the site whose width they have; tied ones share a site.

    Args:
        q: a quantized network.
        of: "weights", "inputs" or "both".
    """
    sites: dict[str, list[str]] = {site: [] for site in quantizers_of(q, of)}
    for name, _ in q.named_quantizers():
        site = q.sites.get(name, name)
        if site in sites:
            sites[site].append(name)
    return sites


def onehot(quantizer: Quantizer, rung: int) -> Tensor:
    """Return all gates of a quantizer on one rung, `[*gates, B]`."""
    rungs = torch.full(quantizer.gates, rung, device=quantizer.logits.device)
    return F.one_hot(rungs, len(quantizer.ladder)).to(quantizer.logits.dtype)


@torch.no_grad()
def code_law(q: Program, name: str, rung: int) -> tuple[Codes, Rung]:
    """Return the law of a weight's codes on a rung, within `q.evaluating()`, and that rung's levels and scales."""
    here = q.rung(name, onehot(q.weights[name], rung))
    return q.weights[name].law(q.location(name, here), here), here


@torch.no_grad()
def weight_errors(q: Program, name: str) -> Tensor:
    """Return the most probable weight on each rung less the float one, `[B, *shape]`, within `q.evaluating()`."""
    laws = [code_law(q, name, k) for k in range(len(q.weights[name].ladder))]
    return torch.stack([law.mode * rung.scale for law, rung in laws]) - float_weight(q, name)


@torch.no_grad()
def input_errors(q: Program, name: str, x: Tensor) -> Tensor:
    """Return a layer's input as rounded on each rung less the input itself, `[B, *x]`."""
    quantizer = q.inputs[name]
    return torch.stack([quantizer(x, onehot(quantizer, k)) - x for k in range(len(quantizer.ladder))])


def squares(tensor: Tensor) -> np.ndarray:
    """Return the sum of squares on each rung, `[B]` float64."""
    return np.asarray(tensor.flatten(1).double().square().sum(1).cpu().numpy())


@torch.no_grad()
def squared_errors(
    q: Program, data: Iterable[Batch], names: Collection[str], progress: bool
) -> dict[str, SquaredErrors]:
    """Return the squared errors of quantizers in the float network, those of inputs as the mean over examples.

    Args:
        q: the network, with scales.
        data: examples.
        names: of the quantizers.
        progress: show a progress bar.
    """
    inputs, found, rows = [name for name in names if name in q.inputs], dict[str, SquaredErrors](), 0
    with q.evaluating():
        for name in names:
            if name in q.weights:
                weight = float_weight(q, name)
                found[name] = SquaredErrors(squares(weight_errors(q, name)), *_size([weight]))
        for x, _ in tqdm(data if inputs else (), disable=not progress, unit="batch", dynamic_ncols=True):
            rows += rows_of(x)
            for name, values in opened(q, x, inputs).values.items():
                norm, count = _size(values)
                errors = sum(squares(input_errors(q, name, value)) for value in values)
                before = found.get(name, SquaredErrors(np.zeros(len(q.inputs[name].ladder)), 0.0, 0.0))
                found[name] = SquaredErrors(before.errors + errors, before.norm + norm, before.count + count)
    for name in inputs:
        total = found[name]
        found[name] = SquaredErrors(total.errors / rows, total.norm / rows, total.count / rows)
    return found


def _size(values: list[Tensor]) -> tuple[float, float]:
    return sum(float(v.double().square().sum()) for v in values), float(sum(v.numel() for v in values))
