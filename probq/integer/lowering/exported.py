"""The operations of a decided network are exported with a mark wherever probq rounds or replaces a number."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.fx import config as fx

from probq.integer.lowering.dispatch import is_known
from probq.integer.lowering.loops.one_step import loop_marks, show_one_step
from probq.integer.lowering.ports import Arguments, structures_of, tensor_names
from probq.network.program.network import Network
from probq.network.program.substitution import hooked
from probq.network.quantizers.affine_norms import affine_norms
from probq.network.tracing.arguments import shapes_of_batch
from probq.network.tracing.stand_ins import is_stand_in
from probq.utils.errors import ProbqError
from probq.utils.random_stream import exclusive
from probq.utils.structures.tensors import call, rows_of, tensors_in, with_tensors
from probq.utils.structures.walk import Structure

BATCH = 3
Kind: TypeAlias = Literal[
    "input", "argument", "value", "norm", "entering", "leaving", "product", "item", "state", "end", "outputs", "last"
]


@dataclass(frozen=True)
class Mark:
    """A mark is a place in the exported graph that a hook of probq put there.

    Attributes:
        kind: "input" where a layer's input or an operand is rounded, "argument" and "value" where those of a tabulated
            function are, "norm" where a normalisation was, folded or a step of its own, "entering" and "leaving" where
            what an operation with a constant takes and gives is rounded, "product" where one of two tensors ends; of a
            recurrence, "item" and "state" where a step begins, "end" where it ends, "outputs" and "last" where all do.
        name: the name of the module.
    """

    kind: Kind
    name: str

    def at(self, number: int) -> Callable[[Tensor], Tensor]:
        """Return a function whose call stands in the graph for this mark, a rounding that says its own number."""
        return lambda x: torch.fake_quantize_per_tensor_affine(x, 1.0, 0, 0, number)


@dataclass(frozen=True)
class Exported:
    """This is the graph of a network's operations; none in place changes what another operation reads.

    Attributes:
        nodes: those that the output needs, in order.
        arguments: what the network is called with, positional and by keyword; a `TensorArgument` names a placeholder.
        returned: what it returns; a `TensorArgument` names a node.
        owned: for each other placeholder, the name of the parameter or buffer.
        constants: tensors that the forward itself makes, by name.
        marks: by their number.
    """

    nodes: tuple[Any, ...]
    arguments: Arguments
    returned: Structure
    owned: Mapping[str, str]
    constants: Mapping[str, Any]
    marks: tuple[Mark, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the placeholders that are tensors among the network's arguments."""
        return tensor_names(self.arguments)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the nodes that are tensors among what it returns."""
        return tensor_names(self.returned)

    def mark(self, node: Any) -> Mark | None:
        """Return the mark that a node is, if it is one."""
        if getattr(node.target, "_opname", "") != "fake_quantize_per_tensor_affine":
            return None
        arguments = named_arguments(node)
        own = arguments["scale"] == 1.0 and arguments["quant_min"] == 0 and arguments["quant_max"] < len(self.marks)
        return self.marks[arguments["quant_max"]] if own else None


def export_graph(q: Network) -> Exported:
    """Return the operations of a network at evaluation, for a batch of `BATCH` examples.

    Hooks put the marks where `Network.run` rounds, so that what stands between a rounding and a product is seen.
    Operations in place on what has several names become their twins without: an operation on a view then shows what it
    does to the whole.

    Raises:
        ProbqError: if `torch.export` cannot trace the network.
    """
    marks = _marks(q)
    hooks: dict[str, dict[str, Any]] = {kind: {} for kind in get_args(Kind)}
    for number, mark in enumerate(marks):
        hooks[mark.kind][mark.name] = mark.at(number)
    net, args = copy.deepcopy(q.net).eval(), _zeros(q)
    show_one_step(net, hooks)
    _without_guesses(net)
    try:
        with (
            exclusive(),
            hooked(
                net,
                hooks["input"] | hooks["argument"] | hooks["entering"],
                hooks["norm"],
                hooks["value"] | hooks["leaving"] | hooks["product"],
            ),
            torch.no_grad(),
            warnings.catch_warnings(),
            _without_stacks(),
        ):
            # torch copies its own tree specifications in a way that it deprecates itself
            warnings.filterwarnings("ignore", ".*isinstance.treespec", FutureWarning)
            # recurrent layers keep a list of their own parameters
            warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)
            program = call(lambda *given, **named: torch.export.export(net, given, named), args)
            _without_idle_dropout(program.graph)
            if any(_seen_elsewhere(node) or _other_view(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:
        raise ProbqError(_why_not(q, error)) from error
    signature = program.graph_signature
    owned = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    arguments, returned = structures_of(program)
    needed = _needed(program.graph, tensor_names(returned))
    return Exported(needed, arguments, returned, owned, program.constants, marks)


def _why_not(q: Network, error: Exception) -> str:
    """Return why a network cannot be traced, and what to do where its arguments are of different lengths."""
    lengths = sorted({len(tensor) for tensor in tensors_in(q.example) if tensor.dim()})
    if len(lengths) > 1:
        return (
            "the network cannot be lowered: the batch is the first axis of every tensor that it is called with, or "
            "the second of states [layers, batch, features], and the tensors of its example have lengths "
            f"{', '.join(map(str, lengths))}; transpose others inside the network"
        )
    return f"torch.export cannot trace the network, so it cannot be lowered: {str(error).splitlines()[0]}" + unclear(q)


def unclear(q: Network) -> str:
    """Return the end of a refusal where a tensor of the example may be states `[layers, batch, features]` or none."""
    rows = rows_of(q.example)
    for tensor in list(tensors_in(q.example))[1:]:
        if tensor.shape[:2] == (rows, rows) and tensor.dim() == 3:
            return (
                f". Its example has a tensor of shape {tuple(tensor.shape)}, whose first axis is taken for the batch; "
                "if that is the second, quantize with another number of examples"
            )
    return ""


@contextmanager
def _without_stacks() -> Iterator[None]:
    """Let torch not look up the lines of source behind each operation, a sixth of the time that an export takes."""
    before = getattr(fx, "do_not_emit_stack_traces", None)
    if before is None:  # before torch 2.13
        yield
        return
    fx.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.do_not_emit_stack_traces = before


def _without_guesses(net: nn.Module) -> None:
    """Let transformers not look into their masks for a causal one, which changes nothing, and cannot be traced."""
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
            name, place = ("is_causal", 3) if isinstance(module, nn.TransformerEncoder) else ("tgt_is_causal", 6)
            module.register_forward_pre_hook(_with_default(name, place), with_kwargs=True)


def _with_default(name: str, place: int) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = len(args) > place or kwargs.get(name) is not None
        return args, kwargs if given else {**kwargs, name: False}

    return hook


def _without_idle_dropout(graph: Any) -> None:
    """Take out what hands on its argument itself, which its schema conceals: operations in place work through it."""
    for node in list(graph.nodes):
        dropout = node.op == "call_function" and "dropout" in operation(node)
        if dropout and not named_arguments(node).get("train", True):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _seen_elsewhere(node: Any) -> bool:
    """Return whether an operation in place changes what is read by another name, so that its twin without must show it.

    That takes torch most of the time that lowering needs, and networks whose activations alone work in place need it
    not.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    changed = node.args[0]
    if changed.op != "call_function" or len(changed.users) > 1:
        return True
    aliases = [result.alias_info for result in changed.target._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _other_view(node: Any) -> bool:
    """Return whether a node is a view that has no form of its own here, and that torch makes of simpler ones."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable or is_known(operation(node)):
        return False
    return any(result.alias_info is not None for result in schema.returns)


def _zeros(q: Network) -> tuple[Any, ...]:
    """Return the arguments of a batch of zeros; what is no tensor among them is as in the example."""
    zeros = (torch.zeros(shape, dtype=dtype) for shape, dtype in shapes_of_batch(q.signature, q.form, BATCH))
    return tuple(with_tensors(q.form, zeros))


def _marks(q: Network) -> tuple[Mark, ...]:
    layers = [Mark("input", name.removesuffix(".input")) for name in q.input_names]
    layers += [Mark("product", layer.name) for layer in q.layers if layer.is_product and layer.input in q.input_names]
    tables = [Mark(kind, name) for name in q.activations for kind in ("argument", "value")]
    norms = [layer.norm for layer in q.layers if layer.norm]
    steps = q.steps.named().items()
    tables += [Mark("entering", name) for name, step in steps if step.rounds[0]]
    tables += [Mark("leaving", name) for name, step in steps if step.rounds[1]]
    norms += [*affine_norms(q.net, q.layers), *q.steps.normalising()]
    loops = (Mark(kind, name) for kind, name in loop_marks(q.net))  # type: ignore[arg-type]
    return (*layers, *tables, *(Mark("norm", name) for name in norms), *loops)


def _needed(graph: Any, outputs: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the nodes on which what is returned depends, in the graph's order.

    Those that update buffers or the input are left out.
    """
    nodes = list(graph.nodes)
    needed = {node for node in nodes if node.name in outputs}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return tuple(node for node in nodes if node in needed)


def named_arguments(node: Any) -> dict[str, Any]:
    """Return what an operation is called with, by the names of its schema, defaults filled in."""
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in node.target._schema.arguments}


def operation(node: Any) -> str:
    """Name of the operation of a node, without its overload."""
    return str(getattr(node.target, "overloadpacket", node.target).__name__)


def module_name(node: Any) -> str:
    """Name of the innermost module of the network that a node belongs to; empty for the network itself."""
    return next((name for name in reversed(_modules(node)) if not is_stand_in(name)), "")


def innermost(node: Any) -> str:
    """Name of the innermost module that a node belongs to, which may be in a stand-in."""
    return next(reversed(_modules(node)), "")


def _modules(node: Any) -> list[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return [str(name).split("@")[0] for name, _ in stack.values()]


def where_of(node: Any) -> str:
    """Return the operation and module of a node, for messages."""
    name = operation(node).removeprefix("_").removeprefix("native_")
    return f"{name.removesuffix('_legit_no_training')} in {module_name(node) or 'the network'}"
