"""Laws of widths that know nothing of limits are led to the nearest ones whose expected costs keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probq.network.program.program import Program
from probq.training.svi.budget_constraint import BudgetConstraint

ROUNDS = 20  # over several limits
STEPS, SAME = 100, 1e-9  # of the fixed point at one multiplier
HALVINGS = 40  # of the interval of a multiplier
MOST = 2.0**60  # multiplier, when nothing but the cheapest rungs is left
OVER = 1e-9  # relative; far below what float32 keeps of a law


def keep_expected(
    q: Program, laws: Mapping[str, Tensor], constraints: Sequence[BudgetConstraint]
) -> Mapping[str, Tensor]:
    """Return the laws nearest to given ones, in divergence, under which no expected cost exceeds its limit.

    With one limit they minimise `KL(q || p)` over products `q` with `E_q[cost] <= limit`; each is a fixed point of

        q_i(b) proportional to p_i(b) exp(-multiplier * E_q[cost | width_i = b] / limit).

    Several limits are met in turn, from the laws that the last one left, until all are kept.

    Args:
        q: the network, its widths not fixed.
        laws: log-probabilities of the rungs `[B]` of each quantizer that shares its width with no other, float64.
        constraints: the limits; one on a chance is no concern here.

    Source: I. Csiszar, 1975, "I-Divergence Geometry of Probability Distributions and Minimization Problems".
    """
    for _ in range(ROUNDS):
        exceeded = [own for own in constraints if own.chance is None and _share(q, laws, own)[0] > 1 + OVER]
        if not exceeded:
            break
        for own in exceeded:
            laws = _tilted(q, laws, own)
    return laws


def _tilted(q: Program, laws: Mapping[str, Tensor], constraint: BudgetConstraint) -> Mapping[str, Tensor]:
    """Return the nearest laws that keep one limit, by bisection of its multiplier."""
    low, high, kept = 0.0, 1.0, _fixed_point(q, laws, laws, constraint, 1.0)
    while _share(q, kept, constraint)[0] > 1 and high < MOST:
        low, high = high, 2 * high
        kept = _fixed_point(q, laws, kept, constraint, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = _fixed_point(q, laws, kept, constraint, middle)
        if _share(q, tried, constraint)[0] > 1:
            low = middle
        else:
            high, kept = middle, tried
    return kept


def _fixed_point(
    q: Program, laws: Mapping[str, Tensor], start: Mapping[str, Tensor], limit: BudgetConstraint, multiplier: float
) -> Mapping[str, Tensor]:
    """Return the laws at one multiplier, by halved steps: two quantizers of a layer would else overshoot together."""
    current = start
    for _ in range(STEPS):
        _, slopes = _share(q, current, limit)
        moved = {
            name: torch.log_softmax((current[name] + law - multiplier * slopes[name]) / 2, -1)
            for name, law in laws.items()
        }
        far = max(float((moved[name].exp() - current[name].exp()).abs().max()) for name in moved)
        current = moved
        if far < SAME:
            break
    return current


def _share(q: Program, laws: Mapping[str, Tensor], constraint: BudgetConstraint) -> tuple[float, dict[str, Tensor]]:
    """Return the expected cost as a share of its limit, and its slopes by the probabilities of rungs."""
    probs = {name: law.exp().requires_grad_() for name, law in laws.items()}
    every = {name: probs[q.sites.get(name, name)] for name, _ in q.named_quantizers()}
    share = q.expected_cost(constraint.tables, every) / constraint.limit
    slopes = torch.autograd.grad(share, list(probs.values()), allow_unused=True)
    given = zip(probs.items(), slopes, strict=True)
    return float(share.detach()), {n: torch.zeros_like(p) if slope is None else slope for (n, p), slope in given}
