"""An exported graph joins again what hooks see one by one: operands of a product, and states of a recurrence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from probq.integer.lowering.operations.values import Value, refusal


@dataclass(frozen=True)
class Together:
    """These are values that belong to one module, as far as its forward has joined them.

    Attributes:
        name: the name of the module.
        parts: the values, by the names or places that it has for them.
    """

    name: str
    parts: Mapping[Any, Value]


class Factors(Together):
    """These are the operands of a product, rounded, by their names within it."""


class Ends(Together):
    """These are the states that a step of a recurrence leaves, by their places."""


def joined(values: Iterable[Any], where: str) -> Together | None:
    """Return the parts that an operation has among the values that it takes; None where it has none.

    Raises:
        ProbqError: if they belong to several modules.
    """
    found = [value for value in values if isinstance(value, Together)]
    if not found:
        return None
    if len({(type(one), one.name) for one in found}) > 1:
        raise refusal(
            where, "it joins operands of several products, or states of several recurrences, as only a hook does"
        )
    return type(found[0])(found[0].name, {key: value for one in found for key, value in one.parts.items()})
