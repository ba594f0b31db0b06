"""Lowering: a decided network becomes an integer model that computes exactly the same."""

from __future__ import annotations

import copy
import operator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq import cost as costs
from probq.assignment import Assignment
from probq.decide import codes, onehots
from probq.errors import ProbqError
from probq.integer import IntegerModel
from probq.lowering.emit import emitted
from probq.lowering.layers import Layers
from probq.lowering.moves import PARTS
from probq.lowering.operations import OPERATIONS
from probq.lowering.tables import MODULES, table
from probq.lowering.values import Value, common, reduced, refusal
from probq.program import check_posterior
from probq.quantized import Quantized
from probq.versions import probq_version

BATCH = 3


def lower(q: Quantized, assignment: Assignment | None = None) -> IntegerModel:
    """The integer model of a decided network.

    For every input, its integers times `output_scale` are exactly what `q.at(assignment)` computes.

    Args:
        q: a quantized network.
        assignment: widths and codes, by default the mode.

    Raises:
        ProbqError: naming operation and module, if something in the network has no exact integer form, or a layer's
            integers could leave 31 bits.
    """
    check_posterior(q, "lower")
    assignment = q.mode() if assignment is None else assignment
    fixed = q.at(assignment).cpu().eval()
    for name in fixed.weight_names:
        if not np.array_equal(codes(fixed, assignment.widths)[name], assignment.codes[name]):
            raise ProbqError(f"the codes of {name} do not fit the network; decide again after training")
    graph = _Graph(fixed, assignment)
    output = graph.walk()
    integers, unit = reduced(output)
    nodes, name = emitted(integers)
    scale = unit * 2.0 ** int(output.exponent) / output.divisor
    return IntegerModel(nodes, name, scale, _metadata(q, assignment))


def _metadata(q: Quantized, assignment: Assignment) -> dict[str, Any]:
    widths = {name: bits if isinstance(bits, int) else _listed(bits) for name, bits in assignment.widths.items()}
    layers = []
    for layer in q.layers:
        own = {n: assignment.widths[n] for n in (layer.weight, layer.input or "") if n in assignment.widths}
        weight, x = (float(np.mean(own.get(n or "", costs.FLOAT_BITS))) for n in (layer.weight, layer.input))
        bops = costs.total([layer], own)
        layers.append({"name": layer.name, "macs": layer.macs, "weight_bits": weight, "input_bits": x, "bops": bops})
    return {
        "widths": widths,
        "layers": layers,
        "bops": assignment.cost(),
        "percent": assignment.percent(),
        "limit": assignment.limit,
        "convention": "BOP = MACs * weight bits * input bits, of MACs * 32 * 32; biases and pooling not counted",
        "versions": {"probq": probq_version()} | {name: version(name) for name in ("torch", "numpy")},
    }


def _listed(bits: np.ndarray) -> Any:
    return bits.tolist() if bits.size <= 4096 else {"mean": float(bits.mean()), "shape": list(bits.shape)}


class _Graph:
    """Walks the exported network and makes a symbolic integer of every tensor."""

    def __init__(self, q: Quantized, assignment: Assignment) -> None:
        self.q = q
        self.make = Layers(q, onehots(q, assignment.widths), assignment.codes)
        self.layers = {layer.name: layer for layer in q.layers}
        self.folded = {layer.norm for layer in q.layers if layer.norm}
        self.values: dict[Any, Any] = {}
        self.functions = self._functions()

    def _functions(self) -> dict[str, str]:
        """The name under which each module that is a table is kept, by all names that it has."""
        kept = {id(self.q.net.get_submodule(name)): name for name in self.q.activations}
        named = self.q.net.named_modules(remove_duplicate=False)
        return {name: kept[id(module)] for name, module in named if id(module) in kept}

    def walk(self) -> Value:
        """The output, in one step."""
        program = self._exported()
        signature = program.graph_signature
        inputs = set(signature.user_inputs)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self.values[node] = self._input(node)
            elif node.op == "call_function":
                self.values[node] = self._called(node)
            elif node.op == "output":
                return self._output(node)
        raise ProbqError("the exported network has no output")

    def _exported(self) -> Any:
        args = tuple(torch.zeros(BATCH, *shape, dtype=dtype) for shape, dtype in self.q.signature)
        net = copy.deepcopy(self.q.net).eval()
        try:
            return torch.export.export(net, args)
        except Exception as error:
            raise ProbqError(
                f"torch.export cannot trace the network, so it cannot be lowered: {str(error).splitlines()[0]}"
            ) from error

    def _input(self, node: Any) -> Value:
        value = node.meta["val"]
        shape = tuple(int(n) for n in value.shape[1:])
        return Value("real" if value.is_floating_point() else "index", (), shape, "the network's input")

    def _called(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        name, module = node.target.overloadpacket.__name__, self._module(node)
        where = f"{name} in {module or 'the network'}"
        out = node.meta.get("val")
        if name == "embedding" or name.startswith(("linear", "conv")):
            return self._layer(node, module, where)
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            if module not in self.folded:
                raise ProbqError(
                    f"{where} cannot be lowered to integers: it does not directly follow a layer of its own"
                )
            return self.values[node.args[0]]
        if name == "sym_size":
            return None
        if module in self.functions:
            return self._function(node, self.functions[module], where)
        if name not in OPERATIONS and name not in PARTS:
            raise refusal(where, _why(name, node))
        outs = [out] if isinstance(out, Tensor) else list(out)
        if any(each.shape[0] != BATCH for each in outs):
            raise refusal(where, "it changes the batch axis")
        shapes = [tuple(int(n) for n in each.shape[1:]) for each in outs]
        args, kwargs = [self._argument(a) for a in node.args], dict(node.kwargs)
        if name in PARTS:
            return PARTS[name](args[0], where, shapes, *args[1:], **kwargs)
        return OPERATIONS[name](args[0], where, shapes[0], *args[1:], **kwargs)

    def _function(self, node: Any, name: str, where: str) -> Value:
        module = self.q.net.get_submodule(name)
        x = self._argument(node.args[0])
        return table(self.q.activations[name], module, name, x, where, self.make.requantizer)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._argument(a) for a in argument]
        if isinstance(argument, torch.fx.Node):
            if argument not in self.values:
                raise ProbqError(f"{argument.name} is a parameter or constant that no layer owns; it cannot be lowered")
            return self.values[argument]
        return argument

    def _module(self, node: Any) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]).split("@")[0] if stack else ""

    def _output(self, node: Any) -> Value:
        outputs = node.args[0]
        if len(outputs) != 1 or not isinstance(self.values.get(outputs[0]), Value):
            raise ProbqError("only networks with one tensor as output can be lowered; wrap the network to return one")
        value = self.values[outputs[0]]
        if value.op in ("real", "index"):
            raise ProbqError("the network returns its own input; there is nothing to lower")
        return common([value])[0]

    def _layer(self, node: Any, module: str, where: str) -> Value:
        layer = self.layers.get(module)
        if layer is None or layer.weight not in self.q.weights:
            raise ProbqError(f"{where} cannot be lowered to integers: it stays float; give it a plan")
        x = self.values[node.args[1 if layer.input is None else 0]]
        return self.make(layer, x, tuple(int(n) for n in node.meta["val"].shape[1:]), where)


def _why(name: str, node: Any) -> str:
    """Why an operation has no integer form, and what to do."""
    module = MODULES.get(name.removesuffix("_"))
    if module is None:
        return f"probq has no exact integer form of {name}; replace it, or end the network before it"
    owner = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())[-1][1]
    if str(owner).endswith(f".{module}") or getattr(owner, "__name__", "") == module:
        return "it stays float; give the layer before it a plan with an activation width, such as Plan(activation=8)"
    return f"the function is called without a module; use torch.nn.{module}, which becomes a table"
