"""What every rule must keep: limits in force that fall to the budget, the constrained optimum, budgets that hold.

A new rule is one line of `RULES`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import pandas
import pytest
import torch
from scipy.optimize import minimize_scalar
from small_fits import X, Y, fitted
from torch import nn

import probq
from probq import Budget, Plan, Quantized, rules
from probq import cost as costs
from probq.codebooks import ladder
from probq.rules import Rule


class Case(NamedTuple):
    """A rule as `fit` takes it, and where it puts a price on the limit, with a rate for a problem of one number."""

    rule: Rule
    priced: Rule | None = None


RULES = (
    Case(rules.DualAscent(), rules.DualAscent(rate=0.2)),
    Case(rules.AugmentedLagrangian(), rules.AugmentedLagrangian()),
    Case(rules.PID(), rules.PID(ki=0.2)),
    Case(rules.ConstraintGuided()),
)


def name_of(rule: Any) -> str:
    return type(rule).__name__


MOVERS = [case.rule for case in RULES if case.priced is None]  # move the gates themselves
every_rule = pytest.mark.parametrize("rule", [case.rule for case in RULES], ids=name_of)


def hard(q: Quantized) -> float:
    """Cost of the most probable width of each quantizer by itself."""
    widths = {n: quantizer.ladder.bits[int(quantizer.probs().argmax())] for n, quantizer in q.named_quantizers()}
    return sum(layer.macs * widths[layer.weight] * widths[layer.input or ""] for layer in q.layers)


# The limit in force and its price


@every_rule
@pytest.mark.parametrize(("start", "limit"), [(1000.0, 10.0), (5.0, 10.0)])
def test_limits_in_force_fall_to_the_limit(rule: Rule, start: float, limit: float) -> None:
    state = rule.begin(start, limit, steps=40)
    found = [state.limit_at(step) for step in range(40)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(found))
    assert max(found) <= max(start, limit) * (1 + 1e-12)
    assert found[-1] == pytest.approx(limit, rel=1e-12)


@every_rule
def test_cost_beyond_a_limit_is_never_rewarded(rule: Rule) -> None:
    state = rule.begin(10.0, 10.0, steps=60)
    for step, amount in enumerate([0.5] * 30 + [-0.5] * 30):
        gap = torch.tensor(amount, requires_grad=True)
        (slope,) = torch.autograd.grad(state.term(gap, step) + 0 * gap, gap)
        assert math.isfinite(float(slope))
        assert float(slope) >= 0
        assert state.multiplier >= 0
        if rule not in MOVERS and step == 29:
            assert float(slope) > 0


@pytest.mark.parametrize("rule", [case.priced for case in RULES if case.priced], ids=name_of)
def test_a_rule_finds_the_constrained_optimum(rule: Rule) -> None:
    """min (c - 4)^2 subject to c <= 2 in log c: at the optimum, c = 2 and the multiplier is -df/dlog c = 8."""
    log_c = torch.tensor(math.log(4.0), requires_grad=True)
    state, optimizer = rule.begin(4.0, 2.0, steps=1500), torch.optim.SGD([log_c], 0.02)
    for step in range(1500):
        optimizer.zero_grad()
        ((log_c.exp() - 4) ** 2 + state.term(log_c - math.log(state.limit_at(step)), step)).backward()
        optimizer.step()
    best = minimize_scalar(lambda c: (c - 4) ** 2, bounds=(0, 2), method="bounded").x
    assert float(log_c.exp().detach()) == pytest.approx(best, rel=2e-2)
    assert state.multiplier == pytest.approx(8, rel=4e-2)


# Fits


@pytest.mark.filterwarnings("ignore:at 0 bits of")
@pytest.mark.parametrize(("seed", "percent"), [(0, 0.2), (1, 0.5), (0, 2.0)])
@every_rule
def test_every_rule_meets_the_limit(rule: Rule, seed: int, percent: float) -> None:
    q, _ = fitted(seed, Budget(percent=percent), rule=rule)
    limit = Budget(percent=percent).absolute(q.layers)
    if rule in MOVERS:
        assert hard(q) <= limit
    else:
        assert float(q.expected_cost(q.cost_tables()).detach()) <= 1.02 * limit
    assert q.mode().cost() <= limit


@pytest.mark.filterwarnings("ignore:at 0 bits of")
@every_rule
def test_every_rule_keeps_several_limits(rule: Rule) -> None:
    budgets = [Budget(percent=0.6), Budget(percent=8, cost=costs.storage)]
    q, history = fitted(0, budgets, rule=rule)
    for k, budget in enumerate(budgets):
        assert q.mode().cost(budget.cost) <= budget.absolute(q.layers)
        column = "percent" if k == 0 else f"percent {k + 1}"
        assert history.to_frame()[column].iloc[-1] <= (budget.percent or 0) * (1 + 1e-9)


@every_rule
def test_a_rule_is_a_value_that_fits_do_not_change(rule: Rule) -> None:
    """The same object serves two fits, which come out the same."""
    before, shown = vars(rule).copy(), repr(rule)
    histories = []
    for _ in range(2):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        q = probq.quantize(net, X, Plan(weight=ladder(1, 2, 4)))
        histories.append(probq.fit(q, [(X, Y)] * 3, Budget(percent=2.0), 4, rule=rule, seed=1, progress=False))
    assert vars(rule) == before
    assert repr(rule) == shown
    assert type(rule)(**before) == rule
    first, second = (history.to_frame() for history in histories)
    pandas.testing.assert_frame_equal(first, second, check_exact=True)
    assert histories[0].settings["rule"] == rule
