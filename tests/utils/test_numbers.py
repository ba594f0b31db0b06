"""Figures in messages: near the number, and enough where they are what is needed."""

import math
import random

import pytest

from probq import Budget, ProbqError, quantize
from probq.cost.budget import _share
from probq.testing import zoo
from probq.utils.numbers import format_number


@pytest.mark.parametrize("digits", [3, 4, 6])
def test_figures_are_near_and_suffice_when_rounded_up(digits: int) -> None:
    generator = random.Random(digits)
    for _ in range(300):
        value = generator.random() * 10 ** generator.uniform(-9, 12)
        near, above = (float(format_number(value, digits, up).replace(",", "")) for up in (False, True))
        unit = 10.0 ** min(math.floor(math.log10(value)) - digits + 1, 0)
        assert abs(near - value) <= 0.5001 * unit
        assert value <= above <= value + 1.0001 * unit
    for whole in (0, 7, 49224, 123456789012):
        assert format_number(whole, digits) == format_number(whole, digits, up=True) == f"{whole:,}"


def test_a_percentage_of_a_cost_is_a_budget_that_the_cost_keeps() -> None:
    generator = random.Random(0)
    for _ in range(2000):
        full = 1024.0 * generator.randint(10**3, 10**9)
        cost = float(generator.randint(1, int(full)))
        percent = 100 * cost / full
        limit = _share(percent, full)
        assert limit >= cost
        assert 100 * limit / full <= percent < 100 * math.nextafter(limit, math.inf) / full


def test_following_the_advice_of_a_message_helps() -> None:
    """Budgets copied from messages are kept, in percent and in a unit that is much too large for the cost."""
    net, example = next((net, x) for name, net, x in zoo() if name == "sequential")
    q = quantize(net, example)

    def small(layer: object, weight_bits: float, input_bits: float) -> float:
        return 1e-7 / 3 * layer.macs * weight_bits * input_bits  # type: ignore[attr-defined]

    with pytest.raises(ProbqError, match=r"cost [\d.,]+ \([\d.]+ %\)") as caught:
        q.mode(Budget(limit=1e-12, cost=small))
    least, percent = str(caught.value).split("widths cost ")[1].split(" %)")[0].split(" (")
    assert q.mode(Budget(limit=float(least), cost=small)).cost(small) <= float(least)
    assert q.mode(Budget(percent=float(percent), cost=small)).percent(small) <= float(percent)
