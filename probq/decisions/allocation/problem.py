"""Every decision is a discrete problem: which widths, at which log-probability and at which costs.

Quantizers that meet in a layer share a cost, and tied quantizers share one width. They form groups. In a group some
widths are enumerated together, so that given those all others are independent: a group is a star, not a web.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from scipy.special import logsumexp

from probq import cost as costs
from probq.codebooks import Ladder
from probq.network.tracing.layer import Layer
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number, format_number

Choice: TypeAlias = list[tuple[int, np.ndarray]]  # of each group a combination, and the rungs of its gates
LayerTable: TypeAlias = tuple[tuple[str | None, ...], np.ndarray]
MOST_COMBINATIONS = 4096


@dataclass(frozen=True)
class Group:
    """A group is the widths that are enumerated together and others that are independent given those; `K` costs each.

    Attributes:
        shared: names of the widths that are enumerated, `S` of them.
        combinations: rung of each of those, `[T, S]`.
        log_shared: log-probability of each combination, `[T]`.
        leaves: names of the others, `V` of them.
        counts: number of gates of each leaf, `[V]`; their sum is `G`.
        log_gates: log-probability of each gate's rungs, `[G, B]`; `-inf` where a gate has no such rung or may not
            take it.
        own: costs that depend on the combination alone, `[K, T]`.
        cost: costs of a leaf if all its gates were on one rung, `[K, T, V, B]`; a gate counts for its share.
    """

    shared: tuple[str, ...]
    combinations: np.ndarray
    log_shared: np.ndarray
    leaves: tuple[str, ...]
    counts: np.ndarray
    log_gates: np.ndarray
    own: np.ndarray
    cost: np.ndarray

    @property
    def gates(self) -> int:
        """Return the number of gates `G`."""
        return len(self.log_gates)

    @property
    def owner(self) -> np.ndarray:
        """Return the leaf of each gate, `[G]`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def shares(self) -> np.ndarray:
        """Return the costs of one gate of each leaf, `[K, T, V, B]`."""
        return self.cost / self.counts[:, None]

    def value(self, combination: int, rungs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the log-probability and costs `[K]` of one choice, `rungs` of shape `[G]`."""
        log_prob = self.log_shared[combination] + self.log_gates[np.arange(self.gates), rungs].sum()
        of_gates = self.cost[:, combination, self.owner, rungs]
        ends = np.cumsum(self.counts)
        parts = [of_gates[:, e - n : e].sum(1) / n for e, n in zip(ends, self.counts, strict=True)]
        return float(log_prob), self.own[:, combination] + sum(parts)

    def tilted(self, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the unnormalised log-probabilities when costs have prices.

        Those of the gates are `[T, G, B]`, those of combinations `[T]`.
        """
        gates = self.log_gates[None] - np.tensordot(prices, self.shares, 1)[:, self.owner]
        return gates, self.log_shared - prices @ self.own + logsumexp(gates, axis=2).sum(1)

    def cheapest(self, index: int) -> tuple[int, np.ndarray]:
        """Return the choice with the least of one cost."""
        allowed = np.isfinite(self.log_gates)[None]
        gates = np.where(allowed, self.shares[index][:, self.owner], np.inf)
        t = int((self.own[index] + gates.min(2).sum(1)).argmin())
        return t, gates[t].argmin(1)


@dataclass(frozen=True)
class Problem:
    """A problem has groups of quantizers, the constant costs of everything else, and the ladders.

    Attributes:
        groups: all of them.
        constant: costs of what has no choice, `[K]`.
        ladders: the ladders of every quantizer.
        full: costs of the 32-bit network, `[K]`.
        sites: for each tied quantizer, the one whose width it shares.
        names: the names of the costs.
        within: for messages, the limits that bar rungs from the start, such as " within 600 largest_activation".
        tables: for each layer the names of its weight's and its input's width, and the costs of every pair of them,
            `[K, weight rungs, input rungs]`.
    """

    groups: tuple[Group, ...]
    constant: np.ndarray
    ladders: Mapping[str, Ladder]
    full: np.ndarray
    sites: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ("",)
    within: str = ""
    tables: tuple[LayerTable, ...] = ()

    @property
    def cheapest(self) -> np.ndarray:
        """Return the least reachable value of each cost alone, `[K]`."""
        # by way of a choice, summed like every other one, so that a limit of exactly this cost can be kept
        choices = [[group.cheapest(k) for group in self.groups] for k in range(len(self.full))]
        return np.array([self.value(choice)[1][k] for k, choice in enumerate(choices)])

    def inside(self, limits: float | np.ndarray) -> np.ndarray:
        """Return the limits `[K]`, a rounding error lower where costs are fractions.

        It raises if one of them is out of reach.

        Raises:
            ProbqError: with the cheapest reachable cost.
        """
        limits, cheapest = np.broadcast_to(np.asarray(limits, float), self.full.shape), self.cheapest
        for name, limit, least, full in zip(self.names, limits, cheapest, self.full, strict=True):
            if least > limit:
                asked = f"{format_number(limit)} {name} ({format_number(100 * limit / full, 4)} %)"
                needed = f"{format_number(least, up=True)} ({format_number(100 * least / full, 4, up=True)} %)"
                raise ProbqError(
                    f"the budget of {asked} cannot be reached: the cheapest widths{self.within} cost {needed}; raise "
                    "the budget or add narrower rungs to the plan's ladders"
                )
        if any((group.counts > 1).any() for group in self.groups):
            return np.maximum(limits * (1 - 1e-12), cheapest)
        return limits

    def widths(self, choice: Choice) -> dict[str, np.ndarray | float]:
        """Return the bits of every quantizer for a choice, a combination and the gates' rungs for each group."""
        result: dict[str, np.ndarray | float] = {}
        for group, (combination, rungs) in zip(self.groups, choice, strict=True):
            for name, rung in zip(group.shared, group.combinations[combination], strict=True):
                result[name] = self.ladders[name].bits[int(rung)]
            for name, own in zip(group.leaves, np.split(rungs, np.cumsum(group.counts)[:-1]), strict=True):
                bits = np.asarray(self.ladders[name].bits)[own]
                result[name] = exact_number(bits[0]) if len(bits) == 1 else bits
        return result | {name: result[site] for name, site in self.sites.items()}

    def value(self, choice: Choice) -> tuple[float, np.ndarray]:
        """Return the log-probability and costs `[K]` of one choice."""
        values = [group.value(*c) for group, c in zip(self.groups, choice, strict=True)]
        return sum(v[0] for v in values), self.constant + sum(v[1] for v in values)

    def keeps(self, choice: Choice, limits: float | np.ndarray) -> bool:
        """Return whether a choice keeps every limit."""
        return bool((self.value(choice)[1] <= limits).all())


def make_problem(
    layers: Sequence[Layer],
    ladders: Mapping[str, Ladder],
    log_probs: Mapping[str, np.ndarray],
    cost: costs.Cost | Sequence[costs.Cost],
    sites: Mapping[str, str] | None = None,
) -> Problem:
    """Return the problem of a network.

    Args:
        layers: the layers of the network.
        ladders: the ladders of every quantizer.
        log_probs: log-probability of every quantizer's rungs in nats, `[B]`, or `[gates, B]` for weights.
        cost: the cost, or several; each a sum over layers.
        sites: for each tied quantizer, the one whose width it shares.

    Raises:
        ProbqError: if one weight meets more combinations of input widths than can be enumerated.
    """
    several = (cost,) if callable(cost) else tuple(cost)
    sites = dict(sites or {})
    laws = {n: np.atleast_2d(log_probs[n]) for n in ladders if n not in sites}
    ends = {
        layer: tuple(sites.get(n, n) if n is not None and n in ladders else None for n in (layer.weight, layer.input))
        for layer in layers
    }
    constant = [
        sum(float(c(m, costs.FLOAT_BITS, costs.FLOAT_BITS)) for m in layers if ends[m] == (None, None)) for c in several
    ]
    groups = [_group(names, ends, ladders, laws, several) for names in _components(ends.values())]
    full = np.array([costs.full(layers, c) for c in several])
    tables = tuple((pair, _tables(layer, pair, ladders, several)) for layer, pair in ends.items())
    names = tuple(map(costs.name, several))
    return Problem(tuple(groups), np.array(constant), ladders, full, sites, names, tables=tables)


def _tables(
    layer: Layer, pair: tuple[str | None, ...], ladders: Mapping[str, Ladder], several: Sequence[costs.Cost]
) -> np.ndarray:
    """Return the costs of a layer at every pair of its widths, `[K, weight rungs, input rungs]`."""
    bits = [ladders[n].bits if n is not None else (costs.FLOAT_BITS,) for n in pair]
    return np.stack([costs.pairs(layer, bits[0], bits[1], c) for c in several])


def _components(ends: Iterable[tuple[str | None, ...]]) -> list[list[str]]:
    """Return the names that meet in a layer, directly or by way of others, in the order of the layers."""
    found: list[list[str]] = []
    for pair in ends:
        names = list(dict.fromkeys(n for n in pair if n is not None))
        met = [group for group in found if set(group) & set(names)]
        found = [group for group in found if group not in met]
        if names:
            found.append(list(dict.fromkeys([*itertools.chain(*met), *names])))
    return found


def _shared(names: Sequence[str], pairs: Sequence[set[str]], laws: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names to enumerate so that all others are independent given those: one end of each pair at least.

    Those with many gates can never be enumerated; of the rest those that meet the fewest others need not be.
    """
    met = {n: set().union(*(p for p in pairs if n in p)) - {n} for n in names}
    shared = list(names)
    for name in sorted(names, key=lambda n: (len(laws[n]) == 1, len(met[n]))):
        if met[name] <= set(shared):
            shared.remove(name)
    return shared


def _group(
    names: Sequence[str],
    ends: Mapping[Layer, tuple[str | None, ...]],
    ladders: Mapping[str, Ladder],
    laws: Mapping[str, np.ndarray],
    several: Sequence[costs.Cost],
) -> Group:
    members = [layer for layer, pair in ends.items() if set(pair) & set(names)]
    shared = _shared(names, [{n for n in ends[m] if n is not None} for m in members], laws)
    leaves = [name for name in names if name not in shared]
    if math.prod(len(ladders[name]) for name in shared) > MOST_COMBINATIONS:
        raise ProbqError(
            f"{leaves[0]} is shared by too many layers with widths of their own; give their inputs fewer rungs"
        )
    every = list(itertools.product(*(range(len(ladders[name])) for name in shared)))
    combinations = np.array(every, dtype=int).reshape(len(every), len(shared))
    log_shared = np.zeros(len(every)) + sum(laws[n][0][combinations[:, s]] for s, n in enumerate(shared))
    rungs = max((len(ladders[name]) for name in leaves), default=1)
    padded = [np.pad(laws[n], ((0, 0), (0, rungs - laws[n].shape[1])), constant_values=-np.inf) for n in leaves]
    own = np.zeros((len(several), len(every)))
    cost = np.zeros((len(several), len(every), len(leaves), rungs))
    for layer in members:
        _add(layer, ends[layer], shared, leaves, combinations, ladders, several, own, cost)
    possible = np.isfinite(log_shared)
    return Group(
        tuple(shared),
        combinations[possible],
        log_shared[possible],
        tuple(leaves),
        np.array([len(laws[name]) for name in leaves], dtype=int),
        np.concatenate(padded) if padded else np.zeros((0, rungs)),
        own[:, possible],
        cost[:, possible],
    )


def _add(
    layer: Layer,
    pair: tuple[str | None, ...],
    shared: Sequence[str],
    leaves: Sequence[str],
    combinations: np.ndarray,
    ladders: Mapping[str, Ladder],
    several: Sequence[costs.Cost],
    own: np.ndarray,
    cost: np.ndarray,
) -> None:
    """Add a layer's costs to those of its group, in place."""
    leaf = next((n for n in pair if n in leaves), None)
    for k, table in enumerate(_tables(layer, pair, ladders, several)):
        if leaf is None:
            own[k] += table[tuple(combinations[:, shared.index(n)] if n is not None else 0 for n in pair)]
        elif pair == (leaf, leaf):
            cost[k, :, leaves.index(leaf), : len(table)] += table.diagonal()
        else:
            table = table if leaf == pair[0] else table.T  # [rungs of the leaf, rungs of the other]
            other = next(n for n in pair if n != leaf)
            columns = combinations[:, shared.index(other)] if other is not None else np.zeros(len(combinations), int)
            cost[k, :, leaves.index(leaf), : len(table)] += table[:, columns].T
