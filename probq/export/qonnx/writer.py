"""QONNX has quantizers of any width in an ONNX graph of real numbers, for hls4ml and FINN.

Only shifts: every requantization is a power of two. All integers stay below 2^24, where float32 is exact.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np

from probq.export.common import results
from probq.export.common.model_argument import require_model, require_no_vectors, require_one_of_each
from probq.export.common.requantization import pairs
from probq.export.onnx.graph import IR_VERSION, OPSET, Graph
from probq.export.qonnx.graph import DOMAIN, Wire
from probq.export.qonnx.layers import FINN, HLS4ML, Flavour, fused, layer
from probq.export.qonnx.operations import check_known, operation
from probq.integer import IntegerModel, Node
from probq.integer.packing import bits_of
from probq.integer.ranges import LAYERS
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError, sentence
from probq.utils.optional_import import require
from probq.utils.paths import checked_path

BATCH = 64  # inputs that the executor gets at once
EXPONENTS = ("probq.input_exponent", "probq.output_exponent")  # notes in a file
FARTHEST = 1000  # exponent


def write(model: IntegerModel, path: str | PathLike[str], flavour: str = "hls4ml") -> None:
    """Write a QONNX file that computes the same integers as the model, as multiples of powers of two.

    Its input `input` takes real numbers (its first quantizer rounds half to even, the model half up); its output is
    `integer * 2^exponent`, the exponent being `probq.output_exponent` in the file's metadata, which also holds the
    widths of every codebook in use: a `Quant` node holds a tensor's largest.

    Args:
        model: the integers of a network quantized with `Plan(profile="shift")`: its requantizations only shift.
        path: the path of the file, which appears whole or not at all.
        flavour: "hls4ml" has quantized biases and one scale per weight; "finn" has plain biases and scales per output
            channel.

    Raises:
        ProbqError: the flavour is not known, onnx is missing, an operation or a width is beyond QONNX, or the file
            cannot be written.
    """
    require_model(model, "export.qonnx.write")
    require_one_of_each(model, "QONNX")
    require_no_vectors(model, "QONNX")
    if flavour not in ("hls4ml", "finn"):
        raise ProbqError(f"there is no flavour {flavour!r:.80}; use 'hls4ml' or 'finn'")
    library = require("onnx", "qonnx")
    graph = Graph()
    output = _wires(graph, model, HLS4ML if flavour == "hls4ml" else FINN)[model.output]
    proto = _proto(graph, model, output)
    with replace_atomically(path) as temporary:
        library.save(proto, str(temporary))


def run(path: str | PathLike[str], integers: Any) -> np.ndarray:
    """Return what qonnx's own executor computes of integers that `model.quantize_input` gave, int64 `[batch, ...]`.

    Args:
        path: a file that `write` wrote.
        integers: the input.

    Raises:
        ProbqError: qonnx is missing, or the file is not one that `write` wrote.
    """
    with opened(path) as compute:
        return compute(integers)


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Callable[[Any], np.ndarray]]:
    """Give what `run` does as a function of the integers; the file is loaded once, for all of its calls.

    Raises:
        ProbqError: as `run`.
    """
    wrapper = require("qonnx.core.modelwrapper", "qonnx").ModelWrapper
    if not checked_path(path).is_file():
        raise ProbqError(f"there is no file {path}; give the path that write was given")
    try:
        proto = require("onnx", "qonnx").load(str(path))
        notes = {entry.key: json.loads(entry.value) for entry in proto.metadata_props if entry.key in EXPONENTS}
    except Exception as error:  # protobuf's exceptions have no common base with onnx's
        raise ProbqError(f"{path} is not an ONNX file, or is damaged ({sentence(error)}); write it again") from error
    sane = all(type(exponent) is int and abs(exponent) < FARTHEST for exponent in notes.values())
    if EXPONENTS[1] not in notes or not sane:
        raise ProbqError(f"{path} is not a file that probq.export.qonnx.write wrote")
    _check_operations(proto.graph.node, path)

    def compute(integers: Any) -> np.ndarray:
        fed = np.asarray(integers)
        if EXPONENTS[0] in notes:
            fed = (fed * 2.0 ** notes[EXPONENTS[0]]).astype(np.float32)
        parts = [fed[k : k + BATCH] for k in range(0, max(1, len(fed)), BATCH)]
        try:
            found = np.concatenate([_executed(wrapper(proto), part) for part in parts])
        except Exception as error:  # its exceptions, and those of its libraries, have no common base
            raise ProbqError(f"qonnx cannot run {path}: {sentence(error)}") from error
        return results.integers(found.astype(np.float64) * 2.0 ** -notes[EXPONENTS[1]], path)

    yield compute


def _check_operations(nodes: Any, path: str | PathLike[str]) -> None:
    """Refuse operations that probq does not write: qonnx imports whatever Python module a domain names."""
    strange = {node.domain for node in nodes} - {"", DOMAIN}
    if strange:
        raise ProbqError(f"{path} has operations of {min(strange)!r:.80}, which probq does not write")
    if any(attribute.HasField("g") or len(attribute.graphs) for node in nodes for attribute in node.attribute):
        raise ProbqError(f"{path} has operations with graphs of their own, which probq does not write")


def _executed(wrapper: Any, x: np.ndarray) -> np.ndarray:
    """Return one batch through qonnx's executor."""
    execute = require("qonnx.core.onnx_exec", "qonnx").execute_onnx
    shapes = require("qonnx.transformation.infer_shapes", "qonnx").InferShapes
    wrapper.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(x)
    wrapper.graph.output[0].type.tensor_type.shape.dim[0].dim_value = len(x)
    return np.asarray(execute(wrapper.transform(shapes()), {"input": x})["output"])


def _wires(graph: Graph, model: IntegerModel, flavour: Flavour) -> dict[str, Wire]:
    for node in model.nodes:  # before advice on another node, which would not help
        if node.op not in LAYERS:
            check_known(node)
    found, behind = model.ranges, pairs(model)
    wires: dict[str, Wire] = {}
    for node in model.nodes:
        if node.name in wires:  # it came with the layer before it
            continue
        try:
            inputs, reached = [wires[name] for name in node.inputs], found[node.name]
            if node.op not in LAYERS:
                wires[node.name] = operation(graph, node, inputs, reached)
                continue
            requantize = behind.get(node.name)
            together = fused(graph, node, requantize, inputs[0], reached.shape, flavour) if requantize else ""
            if requantize and isinstance(together, Wire):
                wires[requantize.name] = together
            else:
                wires[node.name] = layer(graph, node, inputs[0], reached, flavour, _exponent(model, node))
        except ProbqError as error:
            raise ProbqError(f"node {node.name} ({node.op}) cannot be written as QONNX: {error}") from error
    return wires


def _exponent(model: IntegerModel, node: Node) -> int | None:
    """Return the grid of a layer that is the model's output, which is the model's if that is a power of two."""
    mantissa, power = math.frexp(model.output_scale)
    return power - 1 if node.name == model.output and mantissa == 0.5 else None


def _proto(graph: Graph, model: IntegerModel, output: Wire) -> Any:
    """Return the model as ONNX holds it, checked, with batch 1, as hls4ml and FINN want it."""
    helper, numpy_helper = require("onnx.helper", "qonnx"), require("onnx.numpy_helper", "qonnx")
    kinds = require("onnx", "qonnx").TensorProto
    index = model.input.attributes.get("index")
    graph.nodes.append(helper.make_node("Identity", [output.name], ["output"], "output"))
    shape = [1, *model.input.attributes["shape"]]
    ends = [
        helper.make_tensor_value_info("input", kinds.INT64 if index else kinds.FLOAT, shape),
        helper.make_tensor_value_info("output", kinds.FLOAT, [1, *output.shape]),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    body = helper.make_graph(graph.nodes, "probq", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(body, producer_name="probq", opset_imports=opsets, ir_version=IR_VERSION)
    notes = {"model": model.sha256(), "output_exponent": output.exponent, "output_scale": model.output_scale}
    notes["widths"] = {node.name: _widths(node) for node in model.nodes if "weight" in node.tensors}
    if not index:
        notes["input_exponent"] = math.frexp(model.input.attributes["scale"])[1] - 1
    texts = {f"probq.{name}": note if name == "model" else json.dumps(note) for name, note in notes.items()}
    helper.set_model_props(proto, texts)
    require("onnx.checker", "qonnx").check_model(proto)
    return proto


def _widths(node: Node) -> list[int]:
    """Return the bits of every codebook that a weight uses, ascending."""
    packing: Any = node.packing_of("weight")
    return sorted({bits_of(packing.codebooks[k]) for k in np.unique(packing.rung)})
