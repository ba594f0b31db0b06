"""Widths that are known: fixed by a decision or tuned for, and their shapes as users read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from probq import cost as costs
from probq.cost.budget import Budgets, budgets
from probq.errors import ProbqError
from probq.network.program.program import Program
from probq.network.quantizers.base import Quantizer
from probq.network.quantizers.weight import WeightQuantizer


def widths_are_fixed(q: Program) -> bool:
    """Whether every width is fixed."""
    return not any(quantizer.free for _, quantizer in q.named_quantizers())


def fixed_by_decision(q: Program) -> bool:
    """Whether every width was fixed by a decision; a ladder of one rung alone is none."""
    return all(quantizer.fixed is not None for _, quantizer in q.named_quantizers())


def known_rungs(q: Program, budget: Budgets) -> dict[str, np.ndarray] | None:
    """Rungs of every quantizer where they are known without it: fixed, or those that a fit tuned for; else None."""
    if widths_are_fixed(q):
        return {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()}
    if budgets(budget) and budgets(q.budget) and budgets(budget) != budgets(q.budget):
        return None
    widths = tuned_widths(q)
    if widths is None or any(costs.total(q.layers, widths, b.cost) > b.absolute(q.layers) for b in budgets(budget)):
        return None
    return {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()}


def tuned_widths(q: Program) -> dict[str, Any] | None:
    """Widths that the last fit tuned the network at, or None: no fit has, or it learned widths to its end."""
    if any(quantizer.tuned is None for _, quantizer in q.named_quantizers()):
        return None
    return widths_of_rungs(q, {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()})


def fixed_widths(q: Program) -> dict[str, Any]:
    """Widths of a network where all are fixed."""
    return widths_of_rungs(q, {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()})


def _rungs(quantizer: Quantizer, rungs: Tensor | None) -> np.ndarray:
    return np.zeros(quantizer.gates, dtype=np.int64) if rungs is None else rungs.cpu().numpy()


def widths_of_rungs(q: Program, rungs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Widths in bits of rungs given by number."""
    return format_widths(q, {n: np.asarray(q.quantizer(n).ladder.bits)[r] for n, r in rungs.items()})


def format_widths(q: Program, widths: dict[str, Any]) -> dict[str, Any]:
    """Widths as the user reads them: an int for a tensor, `[channels]`, or the weight's own shape."""
    return {name: format_bits(quantizer, np.asarray(widths[name])) for name, quantizer in q.named_quantizers()}


def format_bits(quantizer: Quantizer, bits: np.ndarray) -> Any:
    """Widths of one quantizer as in `format_widths`."""
    if not quantizer.gates:
        return int(bits.reshape(-1)[0])
    own = isinstance(quantizer, WeightQuantizer) and quantizer.gates == quantizer.shape
    return bits.reshape(quantizer.gates if own else -1)


def fix_widths(q: Program, widths: Any) -> None:
    """Fix every width of a network in place."""
    for name, quantizer in q.named_quantizers():
        check_width(name, quantizer, widths)
        if not np.array_equal(widths[name], widths[q.sites.get(name, name)]):
            raise ProbqError(f"the assignment gives {name} and {q.sites[name]} different widths, but they are tied")
        quantizer.fix(np.asarray(widths[name]).reshape(quantizer.gates))


def check_width(name: str, quantizer: Quantizer, widths: Any) -> None:
    """Raise unless an assignment names a quantizer with widths of the right shape."""
    if name not in widths:
        raise ProbqError(f"the assignment has no width for {name}; was it made for another network?")
    if np.asarray(widths[name]).size != int(np.prod(quantizer.gates)):
        raise ProbqError(f"the assignment's widths for {name} do not fit; was it made for another plan?")
