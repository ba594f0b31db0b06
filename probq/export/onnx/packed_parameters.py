"""An ONNX file stores parameters at their own width, with the operators that unpack them (opset 18).

Everything here works on constants, so ONNX Runtime computes it once, when it loads the file.
"""

import numpy as np

from probq.export.onnx.graph import Graph
from probq.export.onnx.vector_parameters import PlacedVectors, placed
from probq.integer.packing import AnyPacking, Levels, Packing, VectorPacking, bits_of, pack, size_in_bits

UNPACKING = 800  # bytes that the operators which unpack a tensor take, about


def parameter(graph: Graph, values: np.ndarray, type: str, packing: AnyPacking | PlacedVectors, zero: int = 0) -> str:
    """Add a tensor of parameters as `values + zero`, at its own width where the graph is packed and that pays.

    Codes of vectors look them up in their table in every graph.
    """
    if isinstance(packing, VectorPacking):
        packing = placed(packing, values.shape)
    if isinstance(packing, PlacedVectors):
        return packing.looked_up(graph, values, type, zero, _numbers)
    saved = values.size * np.dtype(type).itemsize - size_in_bits(values.shape, packing) / 8
    if graph.packed and saved > UNPACKING:
        return unpacked(graph, values, packing, type, zero)
    return graph.constant(values + zero, type)


def unpacked(graph: Graph, values: np.ndarray, packing: Packing, type: str, zero: int) -> str:
    """Add packed values and the operators that make `values + zero` of the given type; return the tensor's name.

    The values of each rung lie together. Where several rungs are in use, the rungs are packed too, and the k-th value
    of a rung goes to the k-th place of that rung.
    """
    rung = packing.rung.reshape(-1)
    used = sorted(set(rung.tolist())) if len(packing.codebooks) > 1 else [int(rung[0]) if rung.size else 0]
    full = np.broadcast_to(packing.rung, values.shape)
    parts = {k: _levels(graph, values[full == k], packing.codebooks[k], type, zero) for k in used}
    flat = parts[used[0]] if len(used) == 1 else _merged(graph, parts, packing, values.shape)
    return graph.node("Reshape", [flat, graph.constant(values.shape, "int64")])


def _levels(graph: Graph, values: np.ndarray, levels: Levels, type: str, zero: int) -> str:
    """Return the values on one codebook, `[elements]` of the given type."""
    if bits_of(levels) == 0:
        return graph.constant(np.full(values.shape, levels[0] + zero), type)
    codes = _codes(graph, pack(values, Packing((levels,), np.array(0))), values.size, bits_of(levels))
    if not isinstance(levels, range):
        return graph.node("Gather", [graph.constant(np.array(levels) + zero, type), codes], axis=0)
    if levels.step != 1:
        codes = graph.node("Mul", [codes, graph.constant(levels.step, "int32")])
    return graph.cast(graph.node("Add", [codes, graph.constant(levels.start + zero, "int32")]), type)


def _numbers(graph: Graph, codes: np.ndarray, count: int) -> str:
    """Return codes below a number, int32, packed where the graph is."""
    levels = range(count)
    if graph.packed and codes.size * bits_of(levels):
        return _codes(graph, pack(codes, Packing((levels,), np.array(0))), codes.size, bits_of(levels))
    return graph.cast(graph.constant(codes, "uint8" if count <= 256 else "uint16"), "int32")


def _codes(graph: Graph, blob: np.ndarray, count: int, bits: int) -> str:
    """Return the codes of a blob, least significant bit first, int32 `[count]`: `sum_k bit_k 2^k`."""
    column = graph.constant(blob.reshape(-1, 1), "uint8")
    places = graph.constant(np.arange(8), "uint8")
    stream = graph.node("BitShift", [column, places], direction="RIGHT")
    stream = graph.node("BitwiseAnd", [stream, graph.constant(1, "uint8")])
    stream = graph.node("Reshape", [stream, graph.constant([-1], "int64")])
    stream = graph.node("Slice", [stream, graph.constant([0], "int64"), graph.constant([count * bits], "int64")])
    stream = graph.node("Reshape", [stream, graph.constant([count, bits], "int64")])
    weighted = graph.node("Mul", [graph.cast(stream, "int32"), graph.constant(2 ** np.arange(bits), "int32")])
    return graph.node("ReduceSum", [weighted, graph.constant([1], "int64")], keepdims=0)


def _merged(graph: Graph, parts: dict[int, str], packing: Packing, shape: tuple[int, ...]) -> str:
    """Return the values of all rungs, each in its place, `[elements]`."""
    places = Packing((range(len(packing.codebooks)),), np.array(0))
    blob = pack(packing.rung, places)
    rung = _codes(graph, blob, packing.rung.size, bits_of(places.codebooks[0]))
    axes = [1] * (len(shape) - packing.rung.ndim) + list(packing.rung.shape)
    rung = graph.node("Reshape", [rung, graph.constant(axes, "int64")])
    rung = graph.node("Expand", [rung, graph.constant(shape, "int64")])
    rung = graph.node("Reshape", [rung, graph.constant([-1], "int64")])
    merged = ""
    for k, part in parts.items():
        here = graph.node("Equal", [rung, graph.constant(k, "int32")])
        count = graph.node("CumSum", [graph.cast(here, "int32"), graph.constant(0, "int64")])
        index = graph.node("Clip", [graph.node("Sub", [count, graph.constant(1, "int32")]), graph.constant(0, "int32")])
        spread = graph.node("Gather", [part, index], axis=0)
        merged = graph.node("Where", [here, spread, merged]) if merged else spread
    return merged
