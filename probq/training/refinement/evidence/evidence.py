"""Measured losses are evidence about widths: they update the law of the widths instead of overruling it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from probq.cost.budget import Budgets, budgets
from probq.decisions.held_gates import is_held
from probq.decisions.measured_law import additive_laws
from probq.network.program.width_prior import rounded_tensors
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import HELD
from probq.priors.energies.energy import OF_CHOICES, Energy
from probq.training.refinement.evidence.expected_limits import keep_expected
from probq.training.refinement.evidence.opinions import Experts, sums
from probq.training.refinement.evidence.space import State, WidthSpace
from probq.training.refinement.prediction.choice_process import ChoiceProcess
from probq.training.svi.budget_constraint import BudgetConstraint, enforce_chance

GUMBEL = math.sqrt(6) / math.pi  # scale of a Gumbel law for one unit of standard deviation
LEAST_ERROR = 1e-3  # of the spread of what was measured
FEWEST = 4  # measurements to learn from
MOST_LOG_ODDS = 20.0
MEASURED = "measured losses"  # label of the energy


class Effects(NamedTuple):
    """Effects say what each option of each quantizer adds to the measured score of a choice of widths.

    Attributes:
        rows: for each quantizer one number for each of its options.
        error: root mean square of what the sum of effects misses at a choice that it has not seen.
    """

    rows: tuple[np.ndarray, ...]
    error: float


def scores(losses: np.ndarray) -> np.ndarray:
    """Return `log(1 + excess / median excess)` of losses over the least one, so that broken networks set no scale.

    Example:
        >>> scores(np.array([1.0, 2.0, 3.0])).round(3)
        array([0.   , 0.693, 1.099])
    """
    excess = np.where(np.isfinite(losses), losses, np.inf) - losses[np.isfinite(losses)].min(initial=np.inf)
    excess = np.minimum(excess, excess[np.isfinite(excess)].max(initial=0.0))
    return np.log1p(excess / (float(np.median(excess)) or float(excess.max()) or 1.0))


def measured_effects(space: WidthSpace, states: np.ndarray, values: np.ndarray) -> Effects:
    """Return the effects of options on values that were measured of some states.

    They are the posterior means of a `ChoiceProcess`, with the slope of least squares and the variances of the greatest
    marginal likelihood.

    Args:
        space: the choices, with the laws that held before.
        states: options `[N, quantizers]`.
        values: `[N]`, the less the better.
    """
    process = ChoiceProcess(states, values, space.log_probs)
    return Effects(process.effects(), max(process.error, LEAST_ERROR * float(values.std()), 1e-12))


def with_trials(losses: Mapping[State, float], tried: Mapping[State, float]) -> dict[State, float]:
    """Return losses in which those after a trial stand in for those before it, moved to have the same mean.

    Trials tell how the candidates differ once they are tuned, not how far all others would have fallen.

    Args:
        losses: before any tuning, in nats.
        tried: after trials, of some of the same choices.

    Example:
        >>> with_trials({(0,): 3.0, (1,): 1.0, (2,): 2.0}, {(1,): 0.6, (2,): 0.4})
        {(0,): 3.0, (1,): 1.6, (2,): 1.4}
    """
    finite = [state for state, loss in tried.items() if math.isfinite(loss) and math.isfinite(losses[state])]
    if not finite:
        return dict(losses)
    fallen = float(np.mean([losses[state] - tried[state] for state in finite]))
    return {**losses, **{state: tried[state] + fallen for state in finite}}


def take_evidence(
    q: Quantized, space: WidthSpace, losses: Mapping[State, float], budget: Budgets, experts: Experts | None = None
) -> None:
    """Give the widths the law under which a choice of widths is the best one, as far as measured losses tell.

    A choice has the score of the sum of its effects and of an error. If errors have a Gumbel law with the standard
    deviation that was found, the choice `w` is the best of all with probability

        P(w) proportional to exp(-sum_i effect_i(w_i) / scale),   scale = sqrt(6) / pi * error,

    which is a product over quantizers. Where experts have a say, the effects are the mean of the measured ones and of
    theirs, each with the spread that the measured ones have over choices that spend the budget, and the error falls by
    the square root of their number, as for independent estimates. The law knows nothing of limits; minus its logarithm
    becomes `q.energy`, and decisions and draws are from it, given that limits hold. The gates take the nearest product
    whose expected cost keeps each limit, or where a budget promises a chance, they move down until it is kept, as at
    the end of a search. Networks whose channels or weights have widths of their own keep their laws, as do those of
    which fewer than four choices were measured.

    Args:
        q: the network, its widths not fixed.
        space: its choices of widths, with the laws that the gates have.
        losses: of some choices, in nats.
        budget: that the widths are decided under.
        experts: on the same space, or None.

    Warns:
        UserWarning: if the promised probability cannot be kept.

    Source: J. I. Yellott, 1977, "The Relationship between Luce's Choice Axiom, Thurstone's Theory of Comparative
    Judgment, and the Double Exponential Distribution".
    """
    energy = energy_of_choices(q, space, losses, experts)
    if energy is None:
        return
    q.energy, constraints = energy, [BudgetConstraint(q, own) for own in budgets(budget)]
    best = {name: torch.as_tensor(law, device=q.device) for name, law in additive_laws(q, energy).items()}
    kept = keep_expected(q, best, constraints)
    with torch.no_grad():
        for name, law in kept.items():
            if len(law) > 1:
                logits, held = q.quantizer(name).logits, is_held(q.quantizer(name))
                logits.copy_(chain_logits(law))
                if held:
                    logits[0] = HELD
    enforce_chance(q, constraints)


def energy_of_choices(
    q: Quantized, space: WidthSpace, losses: Mapping[State, float], experts: Experts | None = None
) -> Energy | None:
    """Return minus the log-probability of being the best choice, as in `take_evidence`, 0 at the widest rungs.

    A rung that the search has left out has 1,000 nats. None if channels or weights have widths of their own, nothing
    has a choice, or too little was measured.
    """
    learned = _learned(space, losses)
    if learned is None:
        return None
    _, effects = learned
    rows, scale = effects.rows, GUMBEL * effects.error
    if experts is not None:
        rows = tuple(own + said for own, said in zip(rows, experts.beside(rows), strict=True))
        scale *= math.sqrt(1 + len(experts.opinions))  # the mean of all, and its error
    free = {}
    for name, row in zip(space.names, rows, strict=True):
        rungs = len(q.quantizer(name).ladder)
        if rungs > 1:
            free[name] = np.concatenate([np.full(rungs - len(row), HELD), (row - row[-1]) / scale])
    if not free:
        return None
    widths = tuple(q.quantizer(name).ladder.bits for name in free)
    return Energy(tuple(free), widths, tuple(free.values()), None, MEASURED, OF_CHOICES, rounded_tensors(q, free))


def ranked(space: WidthSpace, losses: Mapping[State, float], experts: Experts | None = None) -> list[State]:
    """Return measured states, that of the least score first, to which experts add what they do to the law's effects.

    Without experts, or where no law can be learned, that is the order of the losses; among equals the more probable
    one is first.
    """
    learned, states = _learned(space, losses), list(losses)
    totals = np.array(list(losses.values()))
    if learned is not None and experts is not None:
        scored, effects = learned
        totals = scored + sums(experts.beside(effects.rows), np.array(states))
    keys = {state: (total, -space.log_prob(state), state) for state, total in zip(states, totals, strict=True)}
    return sorted(states, key=keys.__getitem__)


def _learned(space: WidthSpace, losses: Mapping[State, float]) -> tuple[np.ndarray, Effects] | None:
    """Return the scores of the losses and their effects, or None if no law can be learned."""
    values = np.array(list(losses.values()))
    if space.has_own_gates or len(values) < FEWEST or not np.isfinite(values).any():
        return None
    scored = scores(values)
    if np.ptp(scored) == 0:
        return None
    return scored, measured_effects(space, np.array(list(losses)), scored)


def chain_logits(log_probs: torch.Tensor) -> torch.Tensor:
    """Return the log-odds `[B - 1]` of a chain of gates whose rungs have log-probabilities `[B]`, normalised or not.

    Gate `k` is open with the odds of all wider rungs against rung `k`; log-odds stay within 20.

    Example:
        >>> chain_logits(torch.tensor([0.25, 0.25, 0.5]).log()).exp()
        tensor([3., 2.])
    """
    beyond = torch.logcumsumexp(log_probs.flip(-1), -1).flip(-1)[..., 1:]
    return (beyond - log_probs[..., :-1]).clamp(-MOST_LOG_ODDS, MOST_LOG_ODDS)
