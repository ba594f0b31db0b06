"""Operations on one rounded number alone, one after the other, become one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.integer.lowering.exported import Exported
from probq.integer.lowering.operations.tables import TABULATED
from probq.integer.lowering.operations.values import Value
from probq.network.tracing.stand_ins import is_stand_in

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LookUp:
    """This is a tabulated function of a rounded argument, as far as its module has computed it yet."""

    name: str
    argument: Value
    function: Function


def looked_up(node: Any, name: str, values: Mapping[Any, Any], graph: Exported) -> LookUp | None:
    """Return what a tabulated function is after one more operation on each number alone; None elsewhere.

    Args:
        node: the operation.
        name: its name.
        values: those of the nodes before.
        graph: of the nodes.
    """
    found = {given: _pending(given, values, graph) for given in node.all_input_nodes if given in values}
    before = {given: look for given, look in found.items() if look is not None}
    alone = torch.Tag.pointwise in getattr(node.target, "tags", ()) or name.removesuffix("_") in TABULATED
    if not alone or len(before) != len(found) or len({(look.name, look.argument) for look in before.values()}) != 1:
        return None
    first = next(iter(before.values()))
    if any(isinstance(values[given], LookUp) for given in before) and not is_stand_in(first.name):
        return None  # a hook of the user's, whose values the scales do not know
    functions = {given: look.function for given, look in before.items()}
    return LookUp(first.name, first.argument, partial(_applied, node=node, functions=functions))


def _pending(given: Any, values: Mapping[Any, Any], graph: Exported) -> LookUp | None:
    """Return the tabulated function whose argument or intermediate result a node is, if it is."""
    value, mark = values[given], graph.mark(given)
    if isinstance(value, LookUp):
        return value
    return LookUp(mark.name, value, torch.clone) if mark is not None and mark.kind == "argument" else None


def _applied(x: Tensor, node: Any, functions: Mapping[Any, Function]) -> Tensor:
    """Return a function of one number as the graph calls it, on what others give for that number."""
    result: Tensor = node.target(*(functions[a](x) if a in functions else a for a in node.args), **node.kwargs)
    return result
