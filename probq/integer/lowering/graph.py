"""The walk over an exported network makes a symbolic integer of every tensor."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.integer.lowering.axes import TURNS, counted_anew, place_of, turned, with_batch_first, without_batch
from probq.integer.lowering.composed.extrema import WITH_INDICES
from probq.integer.lowering.dispatch import OPERATIONS, PARTS, WITH_CONSTANTS, is_known
from probq.integer.lowering.exported import Mark, export_graph, innermost, named_arguments, operation, where_of
from probq.integer.lowering.looked_up import LookUp, looked_up
from probq.integer.lowering.normalising import is_left_in_float, normalised, short_target
from probq.integer.lowering.operations.arithmetic import affine
from probq.integer.lowering.operations.elementwise import check_whole, counted, is_raw, stays_index, whole_numbers
from probq.integer.lowering.operations.layers import Layers, geometry
from probq.integer.lowering.operations.tables import argument, table
from probq.integer.lowering.operations.together import Factors, joined
from probq.integer.lowering.operations.values import Value, common, layer_of, refusal
from probq.integer.lowering.ports import Ports, entering
from probq.integer.lowering.products.factors import product, seen_from
from probq.integer.lowering.products.quotients import part_of_quotient, quotient
from probq.integer.lowering.recurrences import KINDS, Recurrences
from probq.integer.lowering.refusals import check_not_random, no_input, results_of, why_float, why_no_form, why_no_norm
from probq.network.matrices.matrix import Matrix
from probq.network.program.network import Network
from probq.network.quantizers.affine_norms import affine_norms
from probq.network.tracing.arguments import axis_in
from probq.network.tracing.call_finder import SHAPED
from probq.network.tracing.product_calls import Operand, Rounded
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import tensors_in
from probq.utils.structures.walk import map_leaves

CONVERSIONS = frozenset({"to", "_to_copy"})
NORMALISES = ("batch_norm", "_native_batch_norm_legit_no_training")


class Walk:
    """A walk holds the values of the graph's nodes so far.

    Attributes:
        axes: the axis of the batch in each tensor that the network is called with, and once `outputs` was called in
            each that it returns, by its name in the graph.
        endings: each softmax left in float that the network ends with, by its name in the graph.

    Args:
        q: the network, normalisation folded.
        onehots: rung of every quantizer.
        codes: code of every weight.

    Raises:
        ProbqError: if `torch.export` cannot trace the network.
    """

    def __init__(self, q: Network, onehots: Mapping[str, Tensor], codes: Mapping[str, np.ndarray]) -> None:
        self.q, self.make = q, Layers(q, onehots, codes)
        self.graph = export_graph(q)
        self.values, self.endings = dict[Any, Any](), dict[str, Any]()
        self.places: dict[Any, int] = {}  # axis of the batch in each node's tensor; values have it first
        self.axes = dict(zip(self.graph.inputs, map(axis_in, tensors_in(q.form)), strict=False))
        self.recurrences = Recurrences(q, self.graph, self.values, self._called, self._constant)
        self.tensors: dict[str, Tensor] = dict(q.net.named_parameters(remove_duplicate=False))
        self.tensors.update(q.net.named_buffers(remove_duplicate=False))
        modules = dict(q.net.named_modules(remove_duplicate=False))
        layers = {id(modules[layer.name]): layer for layer in q.layers if layer.name in modules}
        self.layers = {name: layers[id(module)] for name, module in modules.items() if id(module) in layers}
        own = [layer.name for layer in q.layers if layer.weight in q.weights]
        places = [f"{name}.{part}" for name in own for part in ("weight", "bias")]
        self.quantized = {id(self.tensors[place]) for place in places if place in self.tensors}
        looked_up = (m for m in q.layers if m.input is None and m.weight in q.weights)
        self.looked_up = {id(q.net.get_parameter(m.weight)): m for m in looked_up}
        self.norms = {layer.norm: layer for layer in q.layers if layer.norm}
        self.affine_norms, self.normalising = affine_norms(q.net, q.layers), q.steps.normalising()

    def outputs(self) -> list[Value]:
        """Return the symbolic integers of the tensors that the network returns, each in one step for all its numbers.

        Raises:
            ProbqError: naming operation and module, if something has no exact integer form.
        """
        for node in self.graph.nodes:
            check_not_random(node)
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in self.graph.inputs:
                given = dict(zip(self.graph.inputs, tensors_in(self.q.example), strict=False)).get(node.name)
                self.places[node] = self.axes[node.name]
                self.values[node] = entering(node, self.graph.nodes, given, self.places[node])
            elif self.recurrences.begins(node) or self._depends(node):
                before = [self.places[each] for each in node.all_input_nodes if each in self.values]
                self.places[node] = place_of(node, before, where_of(node))
                self.values[node] = self._called(node)
        nodes = {node.name: node for node in self.graph.nodes}
        if not self.graph.outputs:
            raise ProbqError("the network returns no tensor; there is nothing to lower")
        made = {name: self._output(nodes.get(name)) for name in dict.fromkeys(self.graph.outputs)}
        self.axes |= {name: self.places[nodes[name]] for name in self.graph.outputs}
        return [made[name] for name in self.graph.outputs]

    def _depends(self, node: Any) -> bool:
        """Return whether a node depends on the network's input."""
        return any(before in self.values for before in node.all_input_nodes) and operation(node) not in SHAPED

    @property
    def ports(self) -> Ports:
        """Return what the integer model takes and gives."""
        used = [node.name for node in self.graph.nodes if node.op == "placeholder" and node.name in self.graph.inputs]
        return Ports(self.graph.arguments, self.graph.returned, tuple(used), self.axes)

    def _output(self, node: Any) -> Value:
        value = self.values.get(node)
        if isinstance(value, LookUp):
            value = self._operand(node)  # which refuses it
        if not isinstance(value, Value):
            raise ProbqError("the network returns a tensor that does not depend on its input; leave it out")
        if value.op in ("real", "index"):
            raise ProbqError("the network returns its own input; leave it out, or lower one that computes something")
        return common([value])[0]

    def _called(self, node: Any) -> Any:
        if node.target is operator.getitem:
            part = self.values[node.args[0]][node.args[1]]
            if part is None:
                raise refusal(where_of(node.args[0]), "its indices have no integer form; take the values alone")
            return part
        name, where = operation(node), where_of(node)
        if (mark := self.graph.mark(node)) is not None:
            return self._marked(mark, node.args[0], node)
        if (together := joined((self.values.get(before) for before in node.all_input_nodes), where)) is not None:
            return together
        if name in NORMALISES:
            raise refusal(where, why_no_norm(node))
        if name == "to" and stays_index(self.values.get(node.args[0]), node.meta["val"].dtype):
            return self.values[node.args[0]]
        if name == "embedding" or name.startswith(("linear", "conv")):
            return self._product(node, where)
        if node.name in self.graph.outputs and is_left_in_float(self.q.net, node):
            self.endings[node.name] = node
            return self._operand(node.args[0])
        if (looked := looked_up(node, name, self.values, self.graph)) is not None:
            return looked
        if not is_known(name):
            raise refusal(where, why_no_form(name))
        return self._operation(node, name, where)

    def _operation(self, node: Any, name: str, where: str) -> Any:
        out, place, outs = node.meta["val"], self.places[node], results_of(node, name not in WITH_INDICES)
        shapes = [without_batch(each, place, where) for each in outs]
        before = next(self.places[each] for each in node.all_input_nodes if each in self.values)
        real = outs[0].is_floating_point()
        prepared = partial(whole_numbers, where=where) if real else counted
        if name in TURNS and (before or place):
            return turned(prepared(self._operand(node.args[0])), node, where, before, shapes[0])
        read = partial(self._given, node=node) if name in (*WITH_CONSTANTS, *WITH_INDICES) else self._operand
        args, kwargs = counted_anew(node, before)
        args, kwargs = [map_leaves(prepared, read(a)) for a in args], {key: read(a) for key, a in kwargs.items()}
        if outs[0].dtype == torch.bool and name in CONVERSIONS:
            name, args, kwargs = "ne", [args[0], 0], {}
        if name in PARTS:
            found = PARTS[name](args[0], where, shapes, *args[1:], **kwargs)
            return found if isinstance(out, Tensor) else [*found, *[None] * (len(out) - len(found))]
        function = WITH_CONSTANTS[name] if name in WITH_CONSTANTS else OPERATIONS[name]
        found = function(args[0], where, shapes[0], *args[1:], **kwargs)
        return found if real or is_raw(found) else check_whole(found, where)

    def _given(self, given: Any, node: Any) -> Any:
        """Return an operand of a node, which may be a constant, or several in a list."""
        if isinstance(given, list | tuple):
            return [self._given(each, node) for each in given]
        if not isinstance(given, torch.fx.Node) or given in self.values:
            return self._operand(given)
        return with_batch_first(self._constant(given), self.places[node], node.meta["val"].dim(), where_of(node))

    def _operand(self, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return [self._operand(a) for a in given]
        if not isinstance(given, torch.fx.Node):
            return given
        value = self.values.get(given)
        if isinstance(value, LookUp):
            raise refusal(f"module {value.name}", "something changes its value before it returns it, such as a hook")
        if value is None:
            raise ProbqError(
                f"{self._origin(given)} is a parameter or constant that no layer owns; it cannot be lowered"
            )
        return value

    def _constant(self, node: Any) -> Any:
        """Return a tensor that depends on no input, as the decided network computes it."""
        if isinstance(node, list | tuple):
            return [self._constant(each) for each in node]
        if not isinstance(node, torch.fx.Node):
            return node
        name = self.graph.owned.get(node.name)
        if name is None:
            function: Any = node.target
            if (mark := self.graph.mark(node)) is not None:  # of a step, which rounds
                step = self.q.steps.named().get(mark.name)
                if step is None:
                    raise no_input(mark.name)
                return step.leaving(self._constant(node.args[0]), True)
            if operation(node) in SHAPED:
                shaped = torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
                return function(shaped, *node.args[1:], **node.kwargs)
            return function(*map(self._constant, node.args), **node.kwargs)
        if name in self.graph.constants and name not in self.tensors:
            return self.graph.constants[name]
        tensor = self.tensors[name]
        if id(tensor) in self.looked_up:
            return self.make.values(self.looked_up[id(tensor)])
        if id(tensor) in self.quantized:
            raise ProbqError(f"{name} is quantized for its layer and used elsewhere too; it cannot be lowered")
        return tensor.detach().double() if tensor.is_floating_point() else tensor

    def _marked(self, mark: Mark, given: Any, node: Any) -> Any:
        """Return what a mark stands for: a rounding, or a normalisation, most often folded into the layer before it."""
        if mark.kind in KINDS:
            return self.recurrences.marked(mark, node)
        where = where_of(node)
        if mark.kind == "product":
            shape = tuple(int(n) for n in node.meta["val"].shape[1:])
            return self._multiplied(mark.name, self.values.get(given), shape)
        if mark.kind == "value":
            looked = self.values.get(given)
            if not isinstance(looked, LookUp) or looked.name != mark.name:
                raise refusal(f"module {mark.name}", "its forward does not compute its function alone")
            return table(self.q.activations[mark.name], mark.name, looked.argument, where, looked.function)
        if isinstance(factors := self.values.get(given), Factors) and mark.kind == "leaving":
            return quotient(self.q.steps.named()[mark.name], mark.name, factors, where_of(given))
        x = self._operand(given)
        if mark.kind == "input" and isinstance(self.q.net.get_submodule(mark.name), Operand):
            name, _, side = mark.name.rpartition(".")
            return Factors(name, {side: self.make.rounded(seen_from(self.layers[name], side), x)})
        if mark.kind == "input":
            return self.make.rounded(self.layers[mark.name], x)
        if mark.kind == "argument":
            return argument(self.q.activations[mark.name], mark.name, x, self.make.requantizer)
        if mark.kind in ("entering", "leaving"):
            step, module = self.q.steps.named()[mark.name], self.q.net.get_submodule(mark.name)
            rounded = self.make.requantizer(x, short_target(2.0 ** step.exponent(mark.kind == "leaving")), mark.name)
            return part_of_quotient(mark.name, rounded) if isinstance(module, Rounded) else rounded
        if mark.name in self.normalising:
            step = self.normalising[mark.name]
            where = f"{step.kind} in {mark.name.rpartition('.')[0] or 'the network'}"
            x = whole_numbers(x, where)
            return normalised(step, mark.name, x, where, self.q.net, self.make.requantizer)
        if mark.name in self.affine_norms:
            where = f"batch_norm in {mark.name}"
            return self._affine(mark.name, whole_numbers(x, where), where)
        if layer_of(x) != self.norms[mark.name].name:
            raise refusal(f"module {mark.name}", f"it does not get what layer {self.norms[mark.name].name} computes")
        return x

    def _multiplied(self, name: str, factors: Any, shape: tuple[int, ...]) -> Value:
        """Return what a product of two tensors computes."""
        module: Any = self.q.net.get_submodule(name)
        where = f"{module.kind} in {name.rpartition('.')[0] or 'the network'}"
        return product(self.layers[name], module, factors, shape, where)

    def _affine(self, name: str, x: Value, where: str) -> Value:
        """Return what a batch normalisation of its own computes, rounded."""
        norm, shape = self.affine_norms[name], [-1] + [1] * (len(x.shape) - 1)
        gain, shift = (part.detach().double().numpy().reshape(shape) for part in (norm.gain, norm.shift))
        return self.make.requantizer(affine(x, where, gain, shift), short_target(norm.step), name)

    def _product(self, node: Any, where: str) -> Value:
        """Return what a layer's own product becomes, from what it is called with rather than what its module says."""
        layer = self.layers.get(innermost(node))
        if layer is None or layer.weight not in self.q.weights:
            raise refusal(where, why_float(self.q.net, node))
        given = named_arguments(node)
        module = self.q.net.get_submodule(layer.name)
        if self._owned(given["weight"], isinstance(module, Matrix)) is not module.weight:
            raise refusal(where, f"its weight is computed, and is not {layer.weight} itself")
        own = getattr(module, "bias", None)
        if given.get("bias") is not None and self._owned(given["bias"]) is not own:
            raise refusal(where, f"its bias is computed, and is not that of {layer.name} itself")
        shape = without_batch(node.meta["val"], self.places[node], where)
        x = self._operand(given["indices" if layer.input is None else "input"])
        if layer.input is None:
            return self.make.embedding(layer, x, shape, where)
        biased = given.get("bias") is not None or own is None
        return self.make.product(layer, x, shape, where, geometry(module, given), biased)

    def _origin(self, node: Any) -> str:
        """Return what the network calls a tensor that depends on no input, or the first that it is computed from."""
        while node.name not in self.graph.owned and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return self.graph.owned.get(node.name, node.name)

    def _owned(self, node: Any, arranged: bool = False) -> Any:
        """Return the network's own tensor that a node is, or has in another order; None where it is computed."""
        return self.tensors.get(self._origin(node) if arranged else self.graph.owned.get(getattr(node, "name", ""), ""))
