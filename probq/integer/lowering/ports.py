"""An integer model takes what its network is called with, and gives what that returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree

from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure, leaves, map_leaves

Arguments: TypeAlias = tuple[Sequence[Structure], Mapping[str, Structure]]


def structures_of(program: Any) -> tuple[Arguments, Structure]:
    """Return what an exported network is called with, positional arguments and those by keyword, and what it returns.

    Leaves are the graph signature's `TensorArgument`, or the constant that stands there.

    Raises:
        ProbqError: if it returns something else than tensors, None and numbers.
    """
    signature, spec = program.graph_signature, program.call_spec
    given = [_leaf(one) for one in signature.input_specs if one.kind is InputKind.USER_INPUT]
    found = [_leaf(one) for one in signature.output_specs if one.kind is OutputKind.USER_OUTPUT]
    with warnings.catch_warnings():
        # torch compares its own tree specifications in a way that it deprecates itself
        warnings.filterwarnings("ignore", ".*isinstance.treespec", FutureWarning)
        arguments, returned = _pytree.tree_unflatten(given, spec.in_spec), _pytree.tree_unflatten(found, spec.out_spec)
    for leaf in leaves(returned):
        if not (leaf is None or isinstance(leaf, TensorArgument | bool | int | float)):
            raise ProbqError(
                f"the network returns {leaf!r:.80} in its output; an integer model gives tensors, None and numbers: "
                "leave it out"
            )
    return arguments, returned


def _leaf(one: Any) -> Any:
    return one.arg if isinstance(one.arg, TensorArgument) else getattr(one.arg, "value", one.arg)


def tensor_names(structure: Structure) -> tuple[str, ...]:
    """Return the names of the tensors in a structure, in order."""
    return tuple(leaf.name for leaf in leaves(structure) if isinstance(leaf, TensorArgument))


def output_structure(returned: Structure, nodes: Sequence[str]) -> Structure:
    """Return what the network returns with the names of an integer model's nodes, given in the tensors' order.

    A network that returns one tensor alone gives a name alone, whatever it holds it in.
    """
    if len(nodes) == 1 and sum(1 for _ in leaves(returned)) == 1:
        return nodes[0]
    left = iter(nodes)
    return map_leaves(lambda leaf: next(left) if isinstance(leaf, TensorArgument) else leaf, returned)


def scales_like(output: Structure, scales: Sequence[float]) -> Structure:
    """Return the scales of an integer model's outputs, given in their order, built like the output."""
    left = iter(scales)
    return map_leaves(lambda leaf: next(left) if isinstance(leaf, str) else None, output)


def input_names(arguments: Arguments, used: Sequence[str]) -> dict[str, str]:
    """Return what an integer model calls the network's tensors, by the names of their placeholders.

    Args:
        arguments: what the network is called with, positional and by keyword.
        used: names of the placeholders on which the outputs depend.
    """
    plain = reads_one(arguments, used)
    return {name: "input" if plain and name in used else f"input.{name}" for name in tensor_names(arguments)}


def reads_one(arguments: Arguments, used: Sequence[str]) -> bool:
    """Return whether outputs depend on one tensor alone, a positional argument, with which a model may be called."""
    alone = [one.name for one in arguments[0] if isinstance(one, TensorArgument)]
    return len(used) == 1 and used[0] in alone


def argument_structure(arguments: Arguments, names: Mapping[str, str]) -> Structure:
    """Return how an integer model's inputs are given, as its network's arguments are.

    Args:
        arguments: what the network is called with, positional and by keyword.
        names: of the inputs, by those of the placeholders.

    Raises:
        ProbqError: if the network takes something else than tensors, None and numbers.
    """
    positional, by_keyword = arguments
    whole: Any = dict(by_keyword) if by_keyword else tuple(positional)
    if len(whole) == 1 and not by_keyword and isinstance(whole[0], TensorArgument):
        whole = whole[0]
    for leaf in leaves(whole):
        if not (leaf is None or isinstance(leaf, TensorArgument | bool | int | float)):
            raise ProbqError(
                f"the network is called with {leaf!r:.80}; an integer model of several inputs takes tensors, None and "
                "numbers: wrap the network in one that gives it"
            )
    return map_leaves(lambda leaf: names[leaf.name] if isinstance(leaf, TensorArgument) else leaf, whole)
