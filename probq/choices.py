"""The discrete problem behind every decision: which widths, at which log-probability and cost.

Quantizers that share a layer share a cost. They form groups: one weight quantizer and the input quantizers of the
layers that use the weight. Groups are independent, and so are a group's gates once its input widths are given.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from probq import cost as costs
from probq.codebooks import Ladder
from probq.errors import ProbqError
from probq.layers import Layer

MOST_COMBINATIONS = 4096


@dataclass(frozen=True)
class Group:
    """One weight quantizer with `G` gates of `B` rungs, and the inputs that meet it.

    Attributes:
        weight: name of the weight quantizer, or None.
        inputs: names of the input quantizers.
        combinations: rung of each input, `[T, inputs]`.
        log_inputs: log-probability of each combination, `[T]`.
        log_gates: log-probability of each gate's rungs, `[G, B]`.
        cost: cost of the whole group if every gate were on one rung, `[T, B]`; a gate counts for its `1 / G`.
    """

    weight: str | None
    inputs: tuple[str, ...]
    combinations: np.ndarray
    log_inputs: np.ndarray
    log_gates: np.ndarray
    cost: np.ndarray

    @property
    def gates(self) -> int:
        """Number of gates `G`."""
        return len(self.log_gates)

    def value(self, combination: int, rungs: np.ndarray) -> tuple[float, float]:
        """Log-probability and cost of one choice, `rungs` of shape `[G]`."""
        log_prob = self.log_inputs[combination] + self.log_gates[np.arange(self.gates), rungs].sum()
        return float(log_prob), float(self.cost[combination, rungs].sum() / self.gates)

    def tilted(self, price: float) -> tuple[np.ndarray, np.ndarray]:
        """Unnormalised log-probabilities when cost has a price: of the gates `[T, G, B]`, of combinations `[T]`."""
        gates = self.log_gates[None] - price * self.cost[:, None, :] / self.gates
        return gates, self.log_inputs + logsumexp(gates, axis=2).sum(1)


@dataclass(frozen=True)
class Problem:
    """Groups of quantizers, the constant cost of everything else, and the ladders."""

    groups: tuple[Group, ...]
    constant: float
    ladders: Mapping[str, Ladder]
    full: float

    @property
    def cheapest(self) -> float:
        """Least reachable cost."""
        # summed gate by gate like every other choice, so that a limit of exactly this cost can be kept
        return self.constant + sum(float(np.full(g.gates, g.cost.min()).sum() / g.gates) for g in self.groups)

    def inside(self, limit: float) -> float:
        """The limit, a rounding error lower where costs are fractions; raises if no choice keeps it.

        Raises:
            ProbqError: with the cheapest reachable cost.
        """
        if any(group.gates > 1 for group in self.groups) and self.cheapest <= limit:
            limit = max(limit * (1 - 1e-12), self.cheapest)
        if self.cheapest > limit:
            raise ProbqError(
                f"the budget of {limit:,.0f} ({100 * limit / self.full:.4g} %) cannot be reached: the narrowest rungs "
                f"everywhere cost {self.cheapest:,.0f} ({100 * self.cheapest / self.full:.4g} %); raise the budget or "
                "add narrower rungs to the plan's ladders"
            )
        return limit

    def widths(self, choice: Sequence[tuple[int, np.ndarray]]) -> dict[str, np.ndarray | int]:
        """Bits of every quantizer for one choice: a combination and the gates' rungs for each group."""
        result: dict[str, np.ndarray | int] = {}
        for group, (combination, rungs) in zip(self.groups, choice, strict=True):
            for name, rung in zip(group.inputs, group.combinations[combination], strict=True):
                result[name] = self.ladders[name].bits[int(rung)]
            if group.weight is not None:
                bits = np.asarray(self.ladders[group.weight].bits)[rungs]
                result[group.weight] = int(bits[0]) if group.gates == 1 else bits
        return result

    def value(self, choice: Sequence[tuple[int, np.ndarray]]) -> tuple[float, float]:
        """Log-probability and cost of one choice."""
        values = [group.value(*c) for group, c in zip(self.groups, choice, strict=True)]
        return sum(v[0] for v in values), self.constant + sum(v[1] for v in values)


def problem(
    layers: Sequence[Layer], ladders: Mapping[str, Ladder], log_probs: Mapping[str, np.ndarray], cost: costs.Cost
) -> Problem:
    """The problem of a network.

    Args:
        layers: of the network.
        ladders: of every quantizer.
        log_probs: log-probability of every quantizer's rungs in nats, `[B]`, or `[gates, B]` for weights.
        cost: the cost.

    Raises:
        ProbqError: if one weight meets more combinations of input widths than can be enumerated.
    """
    by_weight: dict[str, list[Layer]] = {}
    constant = 0.0
    for layer in layers:
        if layer.weight in ladders or layer.input in ladders:
            by_weight.setdefault(layer.weight, []).append(layer)
        else:
            constant += float(cost(layer, costs.FLOAT_BITS, costs.FLOAT_BITS))
    groups = [_group(weight, members, ladders, log_probs, cost) for weight, members in by_weight.items()]
    return Problem(tuple(groups), constant, ladders, costs.full(layers, cost))


def _group(
    weight: str,
    members: Sequence[Layer],
    ladders: Mapping[str, Ladder],
    log_probs: Mapping[str, np.ndarray],
    cost: costs.Cost,
) -> Group:
    inputs = tuple(layer.input for layer in members if layer.input in ladders and layer.input is not None)
    rungs = [range(len(ladders[name])) for name in inputs]
    if np.prod([len(r) for r in rungs]) > MOST_COMBINATIONS:
        raise ProbqError(
            f"{weight} is shared by too many layers with widths of their own; give their inputs fewer rungs"
        )
    every = list(itertools.product(*rungs))
    combinations = np.array(every, dtype=int).reshape(len(every), len(inputs))
    log_inputs = np.zeros(len(combinations))
    for column, name in enumerate(inputs):
        log_inputs = log_inputs + log_probs[name][combinations[:, column]]
    weight_bits = ladders[weight].bits if weight in ladders else (costs.FLOAT_BITS,)
    table = np.zeros((len(combinations), len(weight_bits)))
    where: np.ndarray
    for layer in members:
        bits = ladders[layer.input].bits if layer.input is not None and layer.input in ladders else (costs.FLOAT_BITS,)
        of_pair = costs.pairs(layer, weight_bits, bits, cost)
        where = combinations[:, inputs.index(layer.input)] if layer.input in inputs else np.zeros(len(table), int)
        table += of_pair[:, where].T
    log_gates = log_probs[weight].reshape(-1, len(weight_bits)) if weight in ladders else np.zeros((1, 1))
    return Group(weight if weight in ladders else None, inputs, combinations, log_inputs, log_gates, table)
