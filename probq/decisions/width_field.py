"""A Markov random field over widths has the law `exp(-energy)`, given that a budget is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from probq.cost.budget import Budgets, budgets
from probq.cost.expectation import CostTables
from probq.cost.network_cost import as_network_cost
from probq.decisions.allocation.problem import Choice
from probq.decisions.constrained_posterior import ConstrainedPosterior, constrain
from probq.decisions.measured_law import additive_laws
from probq.network.program.program import Program, check_posterior
from probq.network.program.width_prior import check_energy, check_nats
from probq.priors.energies.elimination import Elimination, draws, marginals
from probq.priors.energies.energy import Energy
from probq.utils.arguments import check_number, check_seed
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number

MOST_ENUMERATED = 2**20  # choices
DRAWS = 10_000  # for marginals, where they are independent
CHAINS, SWEEPS = 256, 100


class WidthField:
    """A width field is the law of widths that an energy alone gives, within a budget if there is one:

        P(widths) proportional to exp(-energy(widths))   where the cost keeps the budget.

    It is a Markov random field, a graph of quantizers with an edge for each pair that has an energy. Up to about a
    million choices are enumerated. Without a budget, quantizers are eliminated one after the other where the graph is
    thin enough. Within a budget and without pairs, draws are exact, and marginals come from them. Otherwise draws come
    from Gibbs sampling over pairs of quantizers, and marginals from such draws.

    Args:
        q: the network that the energy was made for.
        energy: in nats, such as `len(data) * probq.criteria.loss(q, batches)`, or `q.energy`, which `fit` and `decide`
            have measured.
        budget: the limit, or a list of limits that all hold; None for no limit.

    Attributes:
        exact: whether marginals are exact.

    Raises:
        ProbqError: if the energy is of another network or plan or has another unit, or no choice keeps the budget.

    Source: S. Geman, D. Geman, 1984, "Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of
    Images" (Gibbs sampling).

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> plan = probq.Plan(probq.codebooks.ladder(2, 8), probq.codebooks.ladder(1, 2, 4, 8))
        >>> q = probq.quantize(net, torch.rand(8, 2), plan)
        >>> names, widths = ("0.weight", "2.weight", "2.input"), ((2, 8), (2, 8), (1, 2, 4, 8))
        >>> energy = probq.Energy(names, widths, ([1.0, 0.0], [2.0, 0.0], [3.0, 2.0, 1.0, 0.0]))
        >>> field = probq.WidthField(q, energy)
        >>> field.marginals()["0.weight"].round(3)
        array([0.269, 0.731])
    """

    def __init__(self, q: Program, energy: Energy, budget: Budgets = None) -> None:
        check_posterior(q, "WidthField")
        if not isinstance(energy, Energy):
            raise ProbqError(f"WidthField takes an Energy, such as probq.criteria.loss(q, batches), not {energy!r:.80}")
        check_energy(q, energy)
        check_nats(energy, of_choices=True)
        self.energy, self.limits = energy, _limits(q, budget)
        edges = [pair for pair in combinations(range(len(energy.names)), 2) if self._block(*pair).any()]
        self._elimination = Elimination([len(bits) for bits in energy.widths], edges)
        self.exact = self._enumerable or (not self.limits and self._elimination.feasible)
        self._additive = _additive(q, energy, budget)

    @property
    def _enumerable(self) -> bool:
        return math.prod(len(bits) for bits in self.energy.widths) <= MOST_ENUMERATED

    def log_partition(self) -> float:
        """Return `log sum exp(-energy)` over the choices that keep the budget, in nats.

        Raises:
            ProbqError: if the field is too large for an exact sum.
        """
        if self._enumerable:
            return float(np.logaddexp.reduce(self._choices[1]))
        if self.exact:
            return float(self._elimination.log_partition(self._unary, self._pairs))
        inside = None if self._elimination.edges else self._additive.exact_probability()
        if not inside:
            raise ProbqError("the sum over all choices of widths is too large; marginals() and draws() sample")
        return math.log(inside) + float(sum(np.logaddexp.reduce(-row) for row in self.energy.unary))

    def log_prob(self, widths: Mapping[str, float]) -> float:
        """Return the log-probability of a choice of widths in nats, `-inf` where it exceeds the budget.

        Raises:
            ProbqError: as `log_partition`, or if a quantizer has no such width.
        """
        value = -self.energy(widths)
        rungs = [bits.index(widths[n]) for n, bits in zip(self.energy.names, self.energy.widths, strict=True)]
        inside = bool(self.keeps(np.array([rungs]))[0])
        return value - self.log_partition() if inside else -math.inf

    def marginals(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Return the probability of each rung of each quantizer.

        Args:
            seed: of the draws, where they are not exact.
        """
        if self._enumerable:
            rungs, logs = self._choices
            weights = np.exp(logs - np.logaddexp.reduce(logs))
            sums = [np.bincount(rungs[:, k], weights, len(bits)) for k, bits in enumerate(self.energy.widths)]
        elif self.exact:
            sums = [law[0].numpy() for law in marginals(self._elimination, self._unary, self._pairs)]
        else:
            rungs = self._within(CHAINS if self._elimination.edges else DRAWS, seed)
            share = np.full(len(rungs), 1 / len(rungs))
            sums = [np.bincount(rungs[:, k], share, len(bits)) for k, bits in enumerate(self.energy.widths)]
        return dict(zip(self.energy.names, sums, strict=True))

    def draws(self, n: int, seed: int = 0) -> list[dict[str, int]]:
        """Return independent draws of widths in bits, each within the budget.

        Args:
            n: number of draws.
            seed: makes them reproducible.
        """
        check_number("n", n, 1)
        check_seed(seed)
        if self._enumerable:
            rungs, logs = self._choices
            weights = np.exp(logs - np.logaddexp.reduce(logs))
            drawn = rungs[np.random.default_rng(seed).choice(len(rungs), n, p=weights / weights.sum())]
        elif self.exact:
            generator = torch.Generator().manual_seed(seed)
            drawn = draws(self._elimination, self._unary, self._pairs, n, generator).numpy()
        else:
            drawn = self._within(n, seed)
        return [{m: b[k] for m, b, k in zip(self.energy.names, self.energy.widths, row, strict=True)} for row in drawn]

    def keeps(self, rungs: np.ndarray) -> np.ndarray:
        """Return which of several choices keep every limit.

        Args:
            rungs: `[n, quantizers]`, in the order of `energy.names`.
        """
        inside = np.ones(len(rungs), dtype=bool)
        place = {name: rungs[:, k] for k, name in enumerate(self.energy.names)}
        nothing = np.zeros(len(rungs), dtype=int)
        for tables, limit in self.limits:
            parts = []
            for layer, table in tables:
                weight, x = (place.get(tables.site(name), nothing) for name in (layer.weight, layer.input))
                parts.append(table.cpu().numpy()[weight, x])
            inside &= np.asarray(as_network_cost(tables.cost).aggregate(parts)) <= limit
        return inside

    @cached_property
    def _choices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all choices within the budget as rungs `[C, quantizers]`, and minus their energies `[C]`."""
        grids = np.meshgrid(*(np.arange(len(bits)) for bits in self.energy.widths), indexing="ij")
        rungs = np.stack([grid.ravel() for grid in grids], 1)
        rungs = rungs[self.keeps(rungs)]
        logs = -sum(row[rungs[:, k]] for k, row in enumerate(self.energy.unary))
        for i, j in self._elimination.edges:
            logs = logs - self._block(i, j)[rungs[:, i], rungs[:, j]]
        return rungs, np.asarray(logs)

    def _block(self, i: int, j: int) -> np.ndarray:
        return self.energy.block(self.energy.names[i], self.energy.names[j])

    @property
    def _unary(self) -> list[Tensor]:
        return [torch.as_tensor(row)[None] for row in self.energy.unary]

    @property
    def _pairs(self) -> dict[tuple[int, int], Tensor]:
        return {pair: torch.as_tensor(self._block(*pair)) for pair in self._elimination.edges}

    def _within(self, n: int, seed: int) -> np.ndarray:
        """Return independent draws within the budget, `[n, quantizers]`, exact where there are no pairs."""
        if self._elimination.edges:
            return self._sampled(n, seed)
        return np.array([self._rungs(c) for c in self._additive.draws(n, np.random.default_rng(seed))])

    def _rungs(self, choice: Choice) -> list[int]:
        """Return the rungs of a choice, whose gates are all on one."""
        widths = self._additive.problem.widths(choice)
        bits = [exact_number(np.asarray(widths[name]).reshape(-1)[0]) for name in self.energy.names]
        return [own.index(b) for own, b in zip(self.energy.widths, bits, strict=True)]

    def _sampled(self, n: int, seed: int) -> np.ndarray:
        """Return the ends of independent chains of Gibbs sampling, `[n, quantizers]`.

        A step draws two quantizers given all others, so that one can pay for the other within a budget.
        """
        generator, last = np.random.default_rng(seed), len(self.energy.names) - 1
        rungs = np.tile(self._rungs(self._additive.most_probable()[0]), (n, 1))
        for _ in range(SWEEPS * last):
            i, j = sorted(generator.choice(last + 1, 2, replace=False))
            options = np.stack(np.meshgrid(*(np.arange(len(self.energy.widths[k])) for k in (i, j))), -1).reshape(-1, 2)
            tried = np.repeat(rungs[:, None], len(options), 1)
            tried[:, :, [i, j]] = options
            inside = self.keeps(tried.reshape(-1, last + 1)).reshape(n, -1)
            logs = np.where(inside, self._given(rungs, i, j, options), -np.inf)
            chosen = (logs + generator.gumbel(size=logs.shape)).argmax(1)
            rungs[:, [i, j]] = options[chosen]
        return rungs

    def _given(self, rungs: np.ndarray, i: int, j: int, options: np.ndarray) -> np.ndarray:
        """Return the log-weights of two quantizers' options given all other rungs, `[n, options]`."""
        single = []
        for own, other in ((i, j), (j, i)):
            field = np.tile(self.energy.unary[own], (len(rungs), 1))
            for k in range(rungs.shape[1]):
                if k not in (own, other):
                    field += self._block(own, k)[:, rungs[:, k]].T
            single.append(field)
        both = self._block(i, j)[options[:, 0], options[:, 1]]
        result: np.ndarray = -(single[0][:, options[:, 0]] + single[1][:, options[:, 1]] + both)
        return result


def _limits(q: Program, budget: Budgets) -> list[tuple[CostTables, float]]:
    found = [(q.cost_tables(b.cost), b.absolute(q.layers)) for b in budgets(budget)]
    if any(tables.reads for tables, _ in found):
        raise ProbqError("WidthField cannot take costs that know pruned channels; use probq.cost.bops")
    return found


def _additive(q: Program, energy: Energy, budget: Budgets) -> ConstrainedPosterior:
    """Return the law without pairs under the limits, all gates of a tensor on one rung."""
    discrete = constrain(q, budgets(budget), laws=additive_laws(q, energy))
    assert discrete is not None  # it raises otherwise
    discrete.check()
    return discrete
