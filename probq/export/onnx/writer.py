"""ONNX files have standard operators only, exact on integers, for ONNX Runtime and all else that reads ONNX.

A layer with its requantization becomes one `QLinearConv` (a linear layer is a 1x1 convolution) where that is proven
exact level by level; everything else becomes exact operators on int32 and int64, or on whole numbers in floating point
where that is proven to hold every partial sum: convolutions, sums, requantizations. No operator compares integers of 64
bits, because ONNX Runtime does that wrongly on x86 (seen in 1.31.1): what is clipped is held in 32 bits or clipped by
its sign bit (`Graph.limited`).
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probq.export.common import results
from probq.export.common.model_argument import input_names, require_model
from probq.export.common.requantization import readers_among
from probq.export.onnx.bodies import begin_branch, begin_scan, begin_switch, end_branch, end_scan
from probq.export.onnx.graph import IR_VERSION, OPSET, OPSET_PACKED, Edge, Graph, tensor_type
from probq.export.onnx.layers import FastForm, fast_form
from probq.export.onnx.lengths.dynamic_axis import models_at, with_dynamic_axis
from probq.export.onnx.operations import OPERATIONS, input_type
from probq.export.onnx.pooled_convolution import phases, pooled
from probq.export.onnx.quantized_operators import fused, fused_linear
from probq.integer import IntegerModel, Node
from probq.integer.loops.body import results as ends_of
from probq.integer.ports.outputs import as_computed
from probq.integer.ranges import LAYERS, Range
from probq.integer.switches.body import SWITCH, branches
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError, sentence
from probq.utils.optional_import import require
from probq.utils.paths import checked_path

FAST = "QLinearConv"
CLIPPED_LATER = ("max_pool", "reshape", "permute")  # a clip may as well come behind these, where less is left
BATCH = 64  # inputs that ONNX Runtime gets at once
INPUTS = ("tensor(uint8)", "tensor(int8)", "tensor(int16)", "tensor(int32)", "tensor(int64)")


@dataclass(frozen=True)
class Written:
    """This is what `write` wrote.

    Attributes:
        path: the path of the file.
        size: in bytes.
        forms: for each layer `QLinearConv`, or `integer operators: ` and why.
    """

    path: Path
    size: int
    forms: Mapping[str, str]

    def __str__(self) -> str:
        fast = sum(form == FAST for form in self.forms.values())
        lines = [f"{self.path}: {self.size:,} bytes; {fast} of {len(self.forms)} layers as {FAST}"]
        return "\n".join(lines + [f"  {name}: {form}" for name, form in self.forms.items() if form != FAST])


def write(model: IntegerModel, path: str | PathLike[str], packed: bool = False) -> Written:
    """Write an ONNX file that computes the same integers as the model.

    Its input `input` takes what `model.quantize_input` gives, as uint8 (int8 or wider where negative or wider); its
    output `output` is int32, or int64 where 31 bits do not hold it. In front of both is a batch of any size from 1.
    Where there are several, inputs have the names of the model's input nodes, and outputs those of `model.outputs`.
    A model whose length is free has a file that takes any, if its integers are proven to fit their types at all.

    Args:
        model: the integer model.
        path: the path of the file, which appears whole or not at all.
        packed: whether parameters are stored at their own width, with operators that unpack them when the file is
            loaded (opset 18 instead of 13).

    Raises:
        ProbqError: onnx is missing, an operation has no exact ONNX form, or the file cannot be written; or a free
            length changes more than shapes.
    """
    require_model(model, "export.onnx.write")
    proto, forms = _made(model, packed)
    if model.lengths is not None:
        others = models_at(model)[1:]
        lengths = [one.lengths.length for one in (model, *others) if one.lengths is not None]
        proto = with_dynamic_axis([proto, *(_made(one, packed)[0] for one in others)], lengths)
    with replace_atomically(path) as temporary:
        require("onnx", "onnx").save(proto, str(temporary))
    return Written(Path(path), Path(path).stat().st_size, forms)


def _made(model: IntegerModel, packed: bool) -> tuple[Any, dict[str, str]]:
    """Return the model as ONNX holds it, and the form of each layer."""
    graph, forms = Graph(packed, input_names(model)), dict[str, str]()
    edges = dict[str, Edge]()
    _add(graph, model, (model.nodes, {output.node for output in model.outputs}), edges, forms)
    return _proto(graph, model, edges), forms


def run(path: str | PathLike[str], integers: Any, optimize: bool = True) -> Any:
    """Return what ONNX Runtime computes of integers that `model.quantize_input` gave, int64 `[batch, ...]`.

    The result is a tuple of arrays where the file has several outputs.

    Args:
        path: a file that `write` wrote.
        integers: the input.
        optimize: whether ONNX Runtime may rewrite the graph; the integers are the same.

    Raises:
        ProbqError: onnxruntime is missing or cannot load the file, or the integers leave the input's type.
    """
    with opened(path, optimize) as compute:
        return compute(integers)


@contextmanager
def opened(path: str | PathLike[str], optimize: bool = True) -> Iterator[Callable[[Any], Any]]:
    """Give what `run` does as a function of the integers; the file is loaded once, for all of its calls.

    Raises:
        ProbqError: as `run`.
    """
    session = _session(path, optimize)
    yield lambda integers: _computed(session, path, integers)


def _computed(session: Any, path: str | PathLike[str], integers: Any) -> Any:
    """Return what a loaded file computes."""
    sources = session.get_inputs()
    feeds = {source.name: _fed(source, integers, len(sources), path) for source in sources}
    count = len(next(iter(feeds.values())))
    if not count:  # its kernels take no empty batch
        feeds = {name: np.zeros((1, *fed.shape[1:]), fed.dtype) for name, fed in feeds.items()}
    parts = [{name: fed[k : k + BATCH] for name, fed in feeds.items()} for k in range(0, max(count, 1), BATCH)]
    try:
        found = [session.run(None, part) for part in parts]
    except Exception as error:  # its exceptions have no common base
        raise ProbqError(f"ONNX Runtime cannot run {path}: {sentence(error)}") from error
    return as_computed([results.integers(np.concatenate(each)[:count], path) for each in zip(*found, strict=True)])


def _fed(source: Any, integers: Any, several: int, path: str | PathLike[str]) -> np.ndarray:
    """Return what one input of a loaded file gets, in its type."""
    if source.type not in INPUTS:
        raise ProbqError(f"the input of {path} holds {source.type:.40}, no integers; probq did not write it")
    if several > 1 and (not isinstance(integers, Mapping) or source.name not in integers):
        raise ProbqError(f"{path} has {several} inputs, and nothing is given for {source.name:.80}; give a dictionary")
    x = np.asarray(integers[source.name] if several > 1 else integers)
    fed = x.astype(source.type.removeprefix("tensor(").removesuffix(")"))
    if not np.array_equal(fed, x):
        raise ProbqError(f"the integers leave {fed.dtype}, the type of the file's input; use model.quantize_input")
    if len(fed):
        return fed
    sizes = zip(source.shape[1:], fed.shape[1:] or source.shape[1:], strict=True)
    return np.zeros((0, *(own if isinstance(own, int) else given for own, given in sizes)), fed.dtype)


def _session(path: str | PathLike[str], optimize: bool) -> Any:
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if not checked_path(path).is_file():
        raise ProbqError(f"there is no file {path}; give the path that write was given")
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        ends = len(session.get_inputs()), len(session.get_outputs())
    except Exception as error:  # its exceptions have no common base
        raise ProbqError(f"ONNX Runtime cannot load {path}: {sentence(error)}") from error
    if 0 in ends:
        raise ProbqError(f"{path} has {ends[0]} inputs and {ends[1]} outputs, not one of each; probq did not write it")
    return session


def _add(
    graph: Graph, model: IntegerModel, part: tuple[Sequence[Node], Collection[str]], edges: dict[str, Edge],
    forms: dict[str, str],
) -> None:  # fmt: skip
    """Add nodes of the model and their edges; note which layer took which form.

    Args:
        graph: in the making.
        model: the model.
        part: its nodes, or those of a body, and the names of the results.
        edges: those so far.
        forms: by layer.
    """
    found, behind, done = model.ranges, readers_among(*part), set(edges)
    for node in part[0]:
        if node.name in done:  # it came with the layer before it, or with what a body begins with
            continue
        if node.op == SWITCH:
            choice, y = begin_switch(graph, graph.settled(edges[node.inputs[0]]), found[node.name])
            values = {name: graph.settled(edges[name]) for name in node.inputs[1:]}
            for number, branch in enumerate(branches(node)):
                rows, begun = begin_branch(graph, choice, number, values)
                _add(graph, model, (branch, {branch[-1].name}), begun.edges, forms)
                y = end_branch(graph, y, rows, branch[-1].name, begun)
            edges[node.name] = y
            continue
        if node.body:
            inputs = [graph.settled(edges[name]) for name in node.inputs]
            begun = begin_scan(graph, node, inputs, found)
            _add(graph, model, (node.body, ends_of(node)), begun.edges, forms)
            edges[node.name] = end_scan(graph, node, inputs, found[node.name], begun)
            continue
        reader = behind.get(node.name)
        form = fast_form(node, reader, edges[node.inputs[0]], found[node.name]) if node.op in LAYERS else ""
        if reader is not None and isinstance(form, FastForm):
            last, edge = _fused(graph, model, node, reader, behind.get(reader.name), form, edges, found)
            edges[last], forms[node.name] = edge, FAST
            done |= {reader.name, last}
            continue
        if form:
            forms[node.name] = f"integer operators: {form}"
        inputs = [edges[name] if node.op in CLIPPED_LATER else graph.settled(edges[name]) for name in node.inputs]
        edges[node.name] = _single(graph, node, inputs, found[node.name])


def _fused(
    graph: Graph, model: IntegerModel, node: Node, requantize: Node, pool: Node | None, form: FastForm,
    edges: Mapping[str, Edge], found: Mapping[str, Range],
) -> tuple[str, Edge]:  # fmt: skip
    """Add a layer with its requantization, and the pooling behind it where that pays; return the last one's name."""
    source, shape = edges[node.inputs[0]], found[node.name].shape
    if node.op == "linear":
        image = _image(model, node.inputs[0], edges)
        x = graph.settled(source) if image is None else source
        return requantize.name, fused_linear(graph, node, requantize, form, x, shape, image)
    x, parts = graph.settled(source), None if pool is None else phases(node, pool, source, found[pool.name].shape)
    if pool is None or parts is None:
        return requantize.name, fused(graph, node, requantize, form, x, shape)
    return pool.name, pooled(graph, node, requantize, form, x, parts)


def _image(model: IntegerModel, name: str, edges: Mapping[str, Edge]) -> Edge | None:
    """Return what the named node flattens, where ONNX Runtime has that with its channels last."""
    node = next(node for node in model.every_node if node.name == name)
    if node.op != "reshape" or len(edges[name].shape) != 1 or node.inputs[0] in input_names(model):
        return None
    image = edges.get(node.inputs[0])
    if image is None:  # a branch of a switch that does not read it
        return None
    worthwhile = len(image.shape) > 1 and image.shape[0] < math.prod(image.shape)
    return image if worthwhile and image.type == "uint8" else None


def _single(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    try:
        return OPERATIONS[node.op](graph, node, inputs, reached)
    except ProbqError as error:
        raise ProbqError(f"node {node.name} ({node.op}) cannot be written as ONNX: {error}") from error


def _proto(graph: Graph, model: IntegerModel, edges: dict[str, Edge]) -> Any:
    """Return the model as ONNX holds it, checked."""
    helper, numpy_helper = require("onnx.helper", "onnx"), require("onnx.numpy_helper", "onnx")
    outputs = {output.name: graph.integers(graph.settled(edges[output.node])) for output in model.outputs}
    graph.nodes += [helper.make_node("Identity", [edge.name], [name], name) for name, edge in outputs.items()]
    graph.prune(outputs)
    inputs = [
        helper.make_tensor_value_info(
            graph.inputs[node.name], tensor_type(input_type(node)), ["batch", *node.attributes["shape"]]
        )
        for node in model.inputs
    ]
    results = [
        helper.make_tensor_value_info(name, tensor_type(edge.type), ["batch", *edge.shape])
        for name, edge in outputs.items()
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    body = helper.make_graph(graph.nodes, "probq", inputs, results, constants)
    opset = helper.make_opsetid("", OPSET_PACKED if graph.packed else OPSET)
    proto = helper.make_model(body, producer_name="probq", opset_imports=[opset], ir_version=IR_VERSION)
    scales = {graph.inputs[node.name]: node.attributes.get("scale", 1.0) for node in model.inputs}
    units = {output.name: output.scale for output in model.outputs}
    notes = {"model": model.sha256(), "input_scale": _note(scales), "output_scale": _note(units)}
    helper.set_model_props(proto, {f"probq.{name}": note for name, note in notes.items()})
    require("onnx.checker", "onnx").check_model(proto)
    return proto


def _note(numbers: Mapping[str, float]) -> str:
    """Return a number as JSON, or numbers by name where there are several."""
    return json.dumps(next(iter(numbers.values())) if len(numbers) == 1 else numbers)
