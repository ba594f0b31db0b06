"""The float network runs here open to changes of whatever is rounded, normalisation folded as in what is decided."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.network.distributions.observation import Observation
from probq.network.program.biases import rounded_bias
from probq.network.program.folding import per_channel, shift_bias
from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments


@dataclass
class Opened:
    """A run of the float network has a change, of zeros, added to everything that quantizers would round.

    Attributes:
        output: of the network.
        values: by quantizer, the weight, or the layer's input at each call; without gradient.
        changes: what was added to each of them, of the same shape, to differentiate by.
    """

    output: Any = None
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    changes: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, x: Tensor) -> Tensor:
        """Return a number that a quantizer would round, plus a change of zeros."""
        change = torch.zeros_like(x, requires_grad=torch.is_grad_enabled())
        self.values.setdefault(name, []).append(x.detach().clone())  # what comes next may work in place
        self.changes.setdefault(name, []).append(change)
        return x + change


@torch.no_grad()
def float_weight(q: Program, name: str) -> Tensor:
    """Return a weight in float, times the gain of a folded normalisation: what codes times scales stand for."""
    weight, folded = q.location(name), q.fold(name)
    return weight.detach() if folded is None else weight * per_channel(folded[0].gain, folded[1])


def opened(q: Program, x: Any, names: Collection[str]) -> Opened:
    """Run the float network on a batch, within `q.evaluating()`.

    A change of a folded weight is one of what is rounded; the normalisation itself stays as it is.

    Args:
        q: the network.
        x: a batch of inputs, or a tuple of the network's arguments.
        names: the quantizers whose weights or inputs are opened.

    Raises:
        ProbqError: if one of them rounds nothing in this run.
    """
    run = Opened()
    weights = {name: float_weight(q, name) for name in q.weights if name in names or q.fold(name) is not None}
    tensors = {name.removeprefix("."): run.add(name, w) if name in names else w for name, w in weights.items()}
    inputs = {name.removesuffix(".input"): partial(run.add, name) for name in q.inputs if name in names}
    outputs = {}
    for layer in q.layers:
        if layer.norm is not None:
            bias, own = rounded_bias(q.net, layer, q.folded), getattr(q.net.get_submodule(layer.name), "bias", None)
            if own is not None and bias is not None:
                tensors[f"{layer.name}.bias"] = bias
            outputs[layer.norm] = shift_bias(None if own is not None else bias)
    with running(x):
        run.output = substitute(q.net, tensors, inputs, outputs, *arguments(x))
    if silent := [name for name in names if name not in run.values]:
        raise ProbqError(f"{silent[0]} rounds nothing on these examples; give those on which the whole network runs")
    return run


def log_probs(q: Program, output: Any, y: Tensor | None) -> Tensor:
    """Return the log-probability of each example's target, `[batch]`; without targets, of ones drawn from the law.

    Raises:
        ProbqError: if the law gives no number for each example, or cannot draw.
    """
    law = q.law(output, y)
    if y is None:
        try:
            y = law.sample()
        except NotImplementedError as error:
            raise ProbqError(
                f"the likelihood's law, {type(law).__name__}, cannot draw targets; give batches of (input, target)"
            ) from error
    return Observation(law).log_prob(y)
