"""`allocate` finds the widths of least energy within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from probq.cost.budget import Budgets, budgets
from probq.decisions.allocation.pairwise import least_energy
from probq.decisions.assignment import Assignment
from probq.decisions.constrained_posterior import constrain
from probq.decisions.widths import format_widths
from probq.decisions.within_budget import with_widths
from probq.network.program.constant_outputs import warn_constant
from probq.network.program.program import check_posterior
from probq.network.program.width_prior import check_energy, listed
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.training.refinement.decide import make_search
from probq.training.refinement.evidence.validation_loss import ValidationLoss
from probq.utils.arguments import check_number, is_real
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError


def allocate(
    q: Quantized,
    energy: Energy,
    budget: Budgets = None,
    *,
    seconds: float = 60.0,
    forbidden: Mapping[str, Iterable[int]] | None = None,
    validation: Iterable[Any] | None = None,
    batches: Iterable[Any] | None = None,
    evaluations: int = 100,
    progress: bool = True,
) -> Assignment:
    """Return the widths of least energy whose cost keeps the budget, and the most probable codes.

    An additive energy is minimised exactly. A pairwise one is an integer programme that is solved until it is proven
    best or the time is up. Tied quantizers share a width, and where channels or weights have gates of their own, all
    gates of a tensor take the same one. With validation batches, steps from there are then accepted by measured loss,
    as `probq.decide` makes them.

    Args:
        q: the network that the energy was made for.
        energy: of a criterion, such as `probq.criteria.loss(q, batches)`.
        budget: the limit, or a list of limits that all hold; by default the one last fitted for, if any.
        seconds: for the solver of a pairwise energy.
        forbidden: for some quantizers, widths in bits that they must not take.
        validation: iterable of `(input, target)` to measure losses on; None measures none.
        batches: as in `probq.decide`.
        evaluations: greatest number of networks measured.
        progress: show a progress bar while networks are measured.

    Returns:
        The assignment; its `gap` says by how much a better choice could at most have less energy, 0 if it is proven
        best. After a time-out that is the distance to what the solver could prove. Where losses were measured, `loss`
        is that of the result.

    Warns:
        UserWarning: if layers at 0 bits make the outputs the same for all inputs.

    Raises:
        ProbqError: if the energy is of another network or plan, or no choice keeps the budget; it names the cheapest
            reachable cost.

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> x, plan = torch.rand(64, 2), probq.Plan(weight=probq.codebooks.ladder(2, 4, 8))
        >>> q = probq.quantize(net, x, plan)
        >>> energy = probq.criteria.kl(q, [x], progress=False)
        >>> probq.allocate(q, energy, probq.Budget(percent=2)).percent() <= 2
        True
    """
    check_posterior(q, "allocate")
    if not isinstance(energy, Energy):
        raise ProbqError(f"allocate takes an Energy, such as probq.criteria.loss(q, batches), not {energy!r:.80}")
    if not is_real(seconds) or not 0 < seconds < math.inf:
        raise ProbqError(f"seconds must be a positive number, not {seconds!r}")
    budget = budget or q.budget
    laws = _laws(q, energy, _barred(forbidden))
    discrete = constrain(q, budgets(budget), laws=laws)
    assert discrete is not None  # it raises otherwise
    choice, gap = discrete.most_probable()
    pairs = {(a, b): energy.block(a, b) for a, b in combinations(energy.names, 2) if energy.block(a, b).any()}
    if pairs:
        if discrete.coupled:
            raise ProbqError("costs that know pruned channels work with additive energies alone; use probq.cost.bops")
        choice, gap = least_energy(discrete.problem, discrete.limits, pairs, choice, seconds)
    widths = _per_gate(q, _bits(discrete, choice))
    if validation is None:
        warn_constant(q, widths)
        return replace(with_widths(q, widths, budget), gap=gap)
    check_number("evaluations", evaluations, 1)
    training = None if batches is None else Batches(batches, q.device)
    loss = ValidationLoss(q, Batches(validation, q.device, "validation data"), training, None)
    search = make_search(q, budget, loss, evaluations, laws, widths)
    search.run(progress)
    swapped = search.space.widths(search.best)
    loss.settle(q, swapped)
    warn_constant(q, swapped)
    gap = max(0.0, energy(swapped) - energy(widths) + gap)
    return replace(with_widths(q, swapped, budget), gap=gap, loss=search.losses[search.best])


def _per_gate(q: Quantized, bits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return widths in the shape that users read, from one for each quantizer."""
    return format_widths(q, {name: np.broadcast_to(b, q.quantizer(name).gates) for name, b in bits.items()})


def _bits(discrete: Any, choice: Any) -> dict[str, np.ndarray]:
    """Return one width for each quantizer."""
    return {name: np.asarray(bits).reshape(-1)[0] for name, bits in discrete.problem.widths(choice).items()}


def _barred(forbidden: Any) -> dict[Any, list[Any]]:
    """Return forbidden widths by name, each of them a list.

    Raises:
        ProbqError: if they are none.
    """
    if not isinstance(forbidden, Mapping | None):
        raise ProbqError(f"forbidden has widths in bits by name, as {{'conv1.weight': [2]}} has, not {forbidden!r:.80}")
    found: dict[Any, list[Any]] = {}
    for name, bits in (forbidden or {}).items():
        found[name] = list(bits) if isinstance(bits, Iterable) and not isinstance(bits, str) else [bits]
    return found


def _laws(q: Quantized, energy: Energy, forbidden: Mapping[Any, list[Any]]) -> dict[str, np.ndarray]:
    """Return minus the unary energies of all quantizers; what has no choice has one rung."""
    check_energy(q, energy)
    ladders = {name: tuple(quantizer.ladder.bits) for name, quantizer in q.named_sites()}
    free = dict(zip(energy.names, energy.widths, strict=True))
    unknown = next((name for name in forbidden if name not in free), None)
    if unknown is not None:
        raise ProbqError(f"forbidden names {unknown!r}, which has no choice of widths; the names are {listed(free)}")
    laws = {name: np.zeros(len(bits)) for name, bits in ladders.items()}
    laws |= {name: -row for name, row in zip(energy.names, energy.unary, strict=True)}
    for name, several in forbidden.items():
        strange = [b for b in several if isinstance(b, bool) or b not in free[name]]
        if strange:
            raise ProbqError(f"forbidden has {strange[0]!r:.80} for {name}, whose widths in bits are {free[name]}")
        barred = np.isin(free[name], several)
        if barred.all():
            raise ProbqError(f"every width of {name} is forbidden; leave it one of {free[name]}")
        laws[name] = np.where(barred, -np.inf, laws[name])
    return laws
