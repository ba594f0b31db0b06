"""An integer model takes what its network is called with, and gives what that returns."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree

from probq.integer import Node
from probq.integer.lowering.operations.elementwise import WIDEST
from probq.integer.lowering.operations.values import Value
from probq.integer.ports.inputs import argument_of
from probq.integer.ports.outputs import NAME as OUTPUT
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import Keywords
from probq.utils.structures.walk import Structure, leaves, map_leaves, named_leaves

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


def scales_like(output: Structure, scales: Sequence[float]) -> Structure:
    """Return the scales of an integer model's outputs, given in their order, built like the output."""
    left = iter(scales)
    return map_leaves(lambda leaf: next(left) if isinstance(leaf, str) else None, output)


def origin_of(name: str) -> str:
    """Return what the values of an input say where they are from."""
    return f"the network's input {name}"


@dataclass(frozen=True)
class Ports:
    """These are the arguments of a network and what it returns, as an integer model has them.

    Args:
        arguments: what the network is called with, positional and by keyword; a `TensorArgument` names a placeholder.
        returned: what it returns; a `TensorArgument` names a node.
        used: names of the placeholders on which what is returned depends.
        batch: the axis of the batch in each tensor, by the name of its placeholder or node.
    """

    arguments: Arguments
    returned: Structure
    used: tuple[str, ...]
    batch: Mapping[str, int]

    @property
    def reads_one(self) -> bool:
        """Return whether outputs depend on one tensor alone, a positional argument, which a model is called with."""
        alone = [one.name for one in self.arguments[0] if isinstance(one, TensorArgument)]
        return len(self.used) == 1 and self.used[0] in alone and not self.batch[self.used[0]]

    @property
    def names(self) -> dict[str, str]:
        """Return what an integer model calls the network's tensors, by the names of their placeholders."""
        plain = self.reads_one
        names = tensor_names(self.arguments)
        return {name: "input" if plain and name in self.used else f"input.{name}" for name in names}

    @property
    def origins(self) -> dict[str, str]:
        """Return what an integer model calls the network's tensors, by what their values say where they are from."""
        return {origin_of(key): name for key, name in self.names.items()}

    def structures(self, inputs: Sequence[Node], outputs: Sequence[str]) -> tuple[Structure, Structure]:
        """Return the structures of an integer model's output and arguments; None where it takes its one input itself.

        A network that returns one tensor alone gives a name alone, whatever it holds it in.

        Args:
            inputs: nodes of the model.
            outputs: names of the nodes that give the tensors which the network returns.

        Raises:
            ProbqError: if the network takes something else than tensors, None and numbers.
        """
        left = iter(outputs)
        output: Structure = outputs[0]
        if sum(1 for _ in leaves(self.returned)) > 1:
            output = map_leaves(lambda leaf: next(left) if isinstance(leaf, TensorArgument) else leaf, self.returned)
        return output, None if self.reads_one and len(inputs) == 1 else self._arguments()

    def axes(self, inputs: Sequence[Node], output: Structure) -> dict[str, int]:
        """Return the axis of the batch in what an integer model is called with and returns, where it is not the first.

        Args:
            inputs: nodes of the model.
            output: of the model.
        """
        read = {argument_of(node) for node in inputs}
        found = {name: self.batch[own] for own, name in self.names.items() if name in read}
        names = [name for name, leaf in named_leaves(output, OUTPUT) if isinstance(leaf, str)]
        found |= {name: self.batch[own] for name, own in zip(names, tensor_names(self.returned), strict=True)}
        return {name: axis for name, axis in found.items() if axis}

    def _arguments(self) -> Structure:
        positional, by_keyword = self.arguments
        whole: Any = dict(by_keyword) if by_keyword else tuple(positional)
        if len(positional) == 1 and not by_keyword and isinstance(positional[0], TensorArgument):
            whole = positional[0]
        for leaf in leaves(whole):
            if not (leaf is None or isinstance(leaf, TensorArgument | bool | int | float)):
                raise ProbqError(
                    f"the network is called with {leaf!r:.80}; an integer model of several inputs takes tensors, None "
                    "and numbers: wrap the network in one that gives it"
                )
        names = self.names
        return map_leaves(lambda leaf: names[leaf.name] if isinstance(leaf, TensorArgument) else leaf, whole)

    def given(self, args: tuple[Any, ...]) -> Any:
        """Return the network's arguments as the integer model takes them."""
        if self.reads_one:
            return args[[getattr(one, "name", None) for one in self.arguments[0]].index(self.used[0])]
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor | Keywords) else args

    def sources(self, inputs: Sequence[Node]) -> dict[int, Node]:
        """Return an input of the integer model that reads a tensor, by its place among the tensors of the arguments."""
        read = {argument_of(node): node for node in reversed(inputs)}
        return {k: read[name] for k, name in enumerate(self.names.values()) if name in read}


def entering(node: Any, needed: Collection[Any], given: Tensor | None, axis: int = 0) -> Value:
    """Return the symbolic value of a tensor that the network is called with.

    Args:
        node: its placeholder.
        needed: the graph's nodes that count.
        given: the example; None where there is none, as of a posterior that was loaded.
        axis: of the batch.
    """
    value = node.meta["val"]
    shape, name = tuple(int(n) for k, n in enumerate(value.shape) if k != axis), origin_of(node.name)
    if value.is_floating_point():
        return Value("real", (), shape, name)
    ends = (0, 1) if value.dtype == torch.bool else (torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max)
    if ends[1] > WIDEST and given is not None and _is_mask(node, needed, given):
        return Value("index", (), shape, name, high=np.array(1), attributes={"count": 2})
    return Value("index", (), shape, name, low=np.array(ends[0]), high=np.array(ends[1]))


def _is_mask(node: Any, needed: Collection[Any], given: Tensor) -> bool:
    """Return whether whole numbers are a mask: computed with as real ones, and 0 or 1 in the example.

    Those that are only compared may be any, and so may ids, which choose rows of an embedding.
    """
    whole, computed = [node], False
    for each in whole:  # which grows
        for user in set(each.users).intersection(needed).difference(whole):
            if getattr(user.target, "_opname", "") == "embedding":
                return False
            kind = getattr(user.meta["val"], "dtype", torch.bool)
            computed = computed or kind.is_floating_point
            if kind != torch.bool and not kind.is_floating_point:
                whole.append(user)
    return computed and bool(((given == 0) | (given == 1)).all())
