"""Widths are known once a decision fixed them or a fit tuned for them; their shapes are those that users read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from probq import cost as costs
from probq.cost.budget import Budgets, budgets
from probq.network.program.program import Program
from probq.network.quantizers.base import Quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number


def widths_are_fixed(q: Program) -> bool:
    """Return whether every width is fixed."""
    return not any(quantizer.free for _, quantizer in q.named_quantizers())


def fixed_by_decision(q: Program) -> bool:
    """Return whether every width was fixed by a decision; a ladder of one rung needs none."""
    return all(quantizer.fixed is not None for _, quantizer in q.named_quantizers())


def known_rungs(q: Program, budget: Budgets) -> dict[str, np.ndarray] | None:
    """Return the rungs of every quantizer where they are known.

    They are fixed, or those that a fit tuned for under this budget; else the result is None.
    """
    if widths_are_fixed(q):
        return {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()}
    if budgets(budget) and budgets(q.budget) and budgets(budget) != budgets(q.budget):
        return None
    widths = tuned_widths(q)
    if widths is None or any(costs.total(q.layers, widths, b.cost) > b.absolute(q.layers) for b in budgets(budget)):
        return None
    return {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()}


def tuned_widths(q: Program) -> dict[str, Any] | None:
    """Return the widths that the last fit tuned the network at.

    The result is None where no fit has, or where a fit learned widths to its end.
    """
    if any(quantizer.tuned is None for _, quantizer in q.named_quantizers()):
        return None
    return widths_of_rungs(q, {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()})


def fixed_widths(q: Program) -> dict[str, Any]:
    """Return the widths of a network where all are fixed."""
    return widths_of_rungs(q, {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()})


def _rungs(quantizer: Quantizer, rungs: Tensor | None) -> np.ndarray:
    return np.zeros(quantizer.gates, dtype=np.int64) if rungs is None else rungs.cpu().numpy()


def widths_of_rungs(q: Program, rungs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the widths in bits of rungs given by number."""
    return format_widths(q, {n: np.asarray(q.quantizer(n).ladder.bits)[r] for n, r in rungs.items()})


def format_widths(q: Program, widths: dict[str, Any]) -> dict[str, Any]:
    """Return the widths as the user reads them: an int for a tensor, `[channels]`, or the weight's own shape."""
    return {name: format_bits(quantizer, np.asarray(widths[name])) for name, quantizer in q.named_quantizers()}


def format_bits(quantizer: Quantizer, bits: np.ndarray) -> Any:
    """Return the widths of one quantizer as in `format_widths`."""
    if not quantizer.gates:
        return exact_number(bits.reshape(-1)[0])
    own = isinstance(quantizer, WeightQuantizer) and quantizer.gates == quantizer.shape
    return bits.reshape(quantizer.gates if own else -1)


def fix_widths(q: Program, widths: Any) -> None:
    """Fix every width of a network in place."""
    check_widths(q, widths)
    for name, quantizer in q.named_quantizers():
        quantizer.fix(np.asarray(widths[name]).reshape(quantizer.gates))


def release_widths(q: Program) -> None:
    """Make every width of a network that has a choice unknown again, in place."""
    for _, quantizer in q.named_quantizers():
        quantizer.fixed = None


def check_widths(q: Program, widths: Any) -> None:
    """Raise unless there is a width on the ladder of every quantizer, of the right shape, the same one where tied."""
    if not isinstance(widths, Mapping):
        raise ProbqError(f"widths are bits by name, such as Assignment.widths, not {type(widths).__name__}")
    for name, quantizer in q.named_quantizers():
        check_width(name, quantizer, widths)
        if not np.isin(np.asarray(widths[name]), quantizer.ladder.bits).all():
            raise ProbqError(f"a width of {widths[name]} bits for {name} is not on the ladder {quantizer.ladder.bits}")
        site = q.sites.get(name, name)
        if site not in widths or not np.array_equal(widths[name], widths[site]):
            raise ProbqError(f"the assignment gives {name} and {site} different widths, but they are tied")


def check_width(name: str, quantizer: Quantizer, widths: Any) -> None:
    """Raise unless an assignment names a quantizer with widths of the right shape."""
    if name not in widths:
        raise ProbqError(f"the assignment has no width for {name}; was it made for another network?")
    if np.asarray(widths[name]).size != int(np.prod(quantizer.gates)):
        raise ProbqError(f"the assignment's widths for {name} do not fit; was it made for another plan?")
