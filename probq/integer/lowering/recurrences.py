"""The walk over an exported network comes to recurrences here, and makes loops of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from probq.integer.lowering.exported import Exported, Mark, operation
from probq.integer.lowering.loops.symbolic import Loop, has_format, item_of, loop_of, state_like
from probq.integer.lowering.operations.joining import held
from probq.integer.lowering.operations.together import Ends
from probq.integer.lowering.operations.values import Value, refusal
from probq.network.program.network import Network
from probq.nn.recurrence import Recurrence

KINDS = frozenset({"item", "state", "end", "outputs", "last"})
ZEROS = frozenset({"new_zeros", "zeros_like", "zeros"})


def is_zeros(node: Any) -> bool:
    """Return whether a node is made of zeros, whatever the tensor that it takes its shape from."""
    return node.op == "call_function" and operation(node) in ZEROS


@dataclass
class _Found:
    """This is a recurrence as far as the walk has come.

    Attributes:
        sequence: what its steps read.
        item: one part of that.
        states: those before a step, with their nodes.
        firsts: what those begin with that do not begin with zeros.
        loop: once it is whole.
    """

    sequence: Value
    item: Value
    states: dict[int, tuple[Any, Value]] = field(default_factory=dict)
    firsts: dict[int, Value] = field(default_factory=dict)
    loop: Loop | None = None


class Recurrences:
    """This class makes the loops of a decided network's recurrences.

    A step is walked twice: what the first time leaves of the states says their format, with which the second begins.

    Args:
        q: the network.
        graph: its operations.
        values: those of the nodes, which the walk fills.
        call: gives the value of a node from those before.
        constant: gives the tensor of a node that depends on no input.
    """

    def __init__(
        self, q: Network, graph: Exported, values: dict[Any, Any], call: Callable[[Any], Any],
        constant: Callable[[Any], Any],
    ) -> None:  # fmt: skip
        self.q, self.graph, self.values, self.call, self.constant = q, graph, values, call, constant
        self.found: dict[str, _Found] = {}
        marks = [mark for node in graph.nodes if (mark := graph.mark(node)) is not None and mark.kind == "last"]
        self.read = [mark.name for mark in marks]

    def begins(self, node: Any) -> bool:
        """Return whether a node is a state before the first step, which may depend on no input."""
        mark = self.graph.mark(node)
        return mark is not None and mark.kind == "state"

    def marked(self, mark: Mark, node: Any) -> Any:
        """Return what a mark of a recurrence stands for."""
        name, _, number = mark.name.partition("#")
        place, given = int(number or 0), node.args[0]
        where = f"recurrence {name}"
        if mark.kind == "item":
            sequence = self.values[given.args[0]]
            self.found[name] = _Found(sequence, item_of(sequence, where))
            return self.found[name].item
        one = self.found[name]
        if mark.kind == "state":
            if not is_zeros(given):
                one.firsts[place] = self._first(given, where)
            one.states[place] = node, state_like(None, _shape(node), where, one.firsts.get(place))
            return one.states[place][1]
        if mark.kind == "end":
            return Ends(name, {place: self.values[given]})
        if one.loop is None:
            one.loop = self._loop(name, one, given, where)
        return one.loop.outputs() if mark.kind == "outputs" else one.loop.last(place)

    def _first(self, given: Any, where: str) -> Value:
        """Return what a state begins with that does not begin with zeros."""
        value = self.values[given] if given in self.values else held(self.constant(given), where)
        if not isinstance(value, Value) or value.op in ("real", "index"):
            raise refusal(where, "what its first state is, is not rounded; give it as it is, or as layers compute it")
        return value

    def _loop(self, name: str, one: _Found, given: Any, where: str) -> Loop:
        """Return the loop of a recurrence, once a node has all that a step leaves."""
        ends = self._ends(one, given, where)
        for place, (node, state) in one.states.items():
            one.states[place] = node, state_like(ends[place], state.shape, where, one.firsts.get(place))
        self._again(one, given)
        ends, states = self._ends(one, given, where), tuple(one.states[place][1] for place in sorted(one.states))
        if not all(has_format(state, ends[k], one.firsts.get(k)) for k, state in enumerate(states)):
            raise refusal(where, "its state grows from step to step, because nothing rounds it; give its cell a plan")
        module = self.q.net.get_submodule(name)
        assert isinstance(module, Recurrence)
        read = [int(other.rpartition("#")[2]) for other in self.read if other.rpartition("#")[0] == name]
        return loop_of(one.sequence, (one.item, states, ends), one.firsts, read, module.reverse, where)

    def _ends(self, one: _Found, given: Any, where: str) -> tuple[Value, ...]:
        found = self.values[given]
        if not isinstance(found, Ends) or sorted(found.parts) != sorted(one.states):
            raise refusal(where, "a hook changes what its step leaves")
        return tuple(found.parts[place] for place in sorted(found.parts))

    def _again(self, one: _Found, last: Any) -> None:
        """Compute the values of a step again, from its states on."""
        changed = dict(one.states.values())
        self.values.update(changed)
        nodes = list(self.graph.nodes)
        for node in nodes[: nodes.index(last) + 1]:
            if node not in changed and any(before in changed for before in node.all_input_nodes):
                self.values[node] = changed[node] = self.call(node)


def _shape(node: Any) -> tuple[int, ...]:
    value: torch.Tensor = node.meta["val"]
    return tuple(int(n) for n in value.shape[1:])
