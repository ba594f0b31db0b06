"""A selection is several decided networks, and a selector that chooses one of them for each example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq import cost as costs
from probq.cost.budget import Budget
from probq.decisions.assignment import Assignment
from probq.integer import IntegerModel
from probq.integer.lowering.lower import lower
from probq.integer.lowering.switches.several_models import switched
from probq.likelihoods import as_network_likelihood
from probq.network.quantized.quantized import Quantized
from probq.utils.errors import ProbqError
from probq.utils.version import probq_version


@dataclass(frozen=True)
class Selection:
    """A selection chooses for each example the network of least estimated loss plus price times cost.

        choice(x) = argmin_k selector(x)_k + offsets_k

    The selector's outputs are integers, so the choice is the same in every target.

    Attributes:
        networks: with fixed widths, in the order of the choices.
        selector: a network that estimates their losses.
        offsets: what is added to its integers, int64 `[networks]`: mean losses and the price of the costs.
        price: nats for a unit of cost.
        budget: the limit on the expected cost.
        shares: of the examples that chose each network when the price was set, float64 `[networks]`.
    """

    networks: tuple[Quantized, ...] = field(repr=False)
    selector: Quantized = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    price: float
    budget: Budget
    shares: np.ndarray
    model: IntegerModel = field(repr=False)  # of the selector
    assignments: tuple[Assignment, ...] = field(repr=False)

    def choices(self, x: Any) -> np.ndarray:
        """Return the number of the network that is chosen for each example, int64 `[batch]`."""
        given = x.detach().cpu() if isinstance(x, Tensor) else x
        return np.asarray((self.model(given) + self.offsets).argmin(1))

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return each example's output from its own network, exactly that of the integer model."""
        choices, found = self.choices(x), None
        for number, (q, assignment) in enumerate(zip(self.networks, self.assignments, strict=True)):
            rows = torch.from_numpy(np.flatnonzero(choices == number)).to(x.device)
            if len(rows) or (found is None and number == len(self.networks) - 1):
                output = q.outputs([assignment], x[rows])[0]
                found = output.new_empty(len(x), *output.shape[1:]) if found is None else found
                found[rows] = output
        assert found is not None
        return found

    def cost(self, x: Any = None) -> float:
        """Return the expected cost of one example in the budget's unit, the selector's included.

        Args:
            x: inputs to take the mean over; by default the data that the price was set on.
        """
        shares = self.shares if x is None else _shares(self.choices(x), len(self.networks))
        own = self.selector.mode().cost(self.budget.cost)
        return own + float(shares @ [a.cost(self.budget.cost) for a in self.assignments])

    def percent(self, x: Any = None) -> float:
        """Return the expected cost in percent of the network with 32-bit weights and inputs, without a selector."""
        return float(costs.percent(self.cost(x), self.networks[0].layers, self.budget.cost))

    def lower(self) -> IntegerModel:
        """Return the integer model that computes the selector, and for each example one of the networks.

        It is a switch in files, in C and in ONNX; other targets refuse it by name. It holds the weights of all
        networks.

        Raises:
            ProbqError: as `probq.lower`; or the networks' outputs have units of which none divides the others.
        """
        models = [lower(q, a) for q, a in zip(self.networks, self.assignments, strict=True)]
        parts = {"selector.": self.model} | {f"branch{number}.": model for number, model in enumerate(models)}
        layers = [
            {**entry, "name": prefix + entry["name"]}
            for prefix, model in parts.items()
            for entry in model.metadata["layers"]
        ]
        metadata = {
            "layers": layers,
            "shares": self.shares.tolist(),
            "expected": self.cost(),
            "percent": self.percent(),
            "cost": costs.name(self.budget.cost),
            "limit": self.budget.absolute(self.networks[0].layers),
            "branches": [model.metadata for model in models],
            "versions": {"probq": probq_version()},
            **as_network_likelihood(self.networks[0].likelihood).metadata(),
        }
        return switched(self.model, self.offsets, models, metadata)


def _shares(choices: np.ndarray, count: int) -> np.ndarray:
    """Return the share of each choice.

    Raises:
        ProbqError: if there are none.
    """
    if not len(choices):
        raise ProbqError("the expected cost is a mean over examples; give one at least")
    return np.bincount(choices, minlength=count) / len(choices)
