"""Hand-written hardware gets parameters, thresholds and test vectors in memory files that `$readmemh` reads.

The folder's `probq.json` lists every node with its inputs, attributes, shape, width and files; all files are lines of
hexadecimal words (`probq.export.memory.words`):

* `NODE.weight.mem`: a line per output channel, elements `[inputs / groups, *kernel]` in C order;
* `NODE.bias.mem`: a line per output channel, on the accumulator's grid;
* `NODE.multiplier.mem`, `.add.mem`, `.shift.mem`: of `code = clip((x multiplier + add) >> shift, lo, hi)`, a line for
  each element of the tensor, which broadcasts to the value as numpy does;
* `NODE.table.mem`: of `table[x - first]`, a line for each entry;
* `NODE.threshold.mem`, for requantizations to at most 256 codes: a line for each of those elements, with the thresholds
  `T_1 <= T_2 <= ...` in this order; `code = lo + number of k with x >= T_k`;
* `NODE.vector.mem`: a line per test input with the node's value, `[*shape]` in C order.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probq.export.common.artifact_folder import read_index, replace_folder, write_index
from probq.export.common.model_argument import require_model, require_no_vectors, require_one_of_each
from probq.export.memory import reader
from probq.export.memory.words import width_of, write_words
from probq.integer import IntegerModel, Node
from probq.integer.ranges import LAYERS, Range, accumulators
from probq.utils.errors import ProbqError

THRESHOLDS = 255  # most per requantization
WORD = 2**61  # no threshold is beyond it
VECTORS = 8
MOST_WORDS = 2**26  # of all test vectors


def write(model: IntegerModel, path: str | PathLike[str], vectors: int = VECTORS) -> None:
    """Write the folder; it appears whole or not at all.

    Args:
        model: the integers; a chain of input, linear, conv, requantize, multiply, max_pool, reshape, clip, table,
            repeat, pad, slice.
        path: the path of the folder.
        vectors: test inputs: the least, the greatest, and random ones of a fixed seed.

    Raises:
        ProbqError: the model has another operation, integers beyond 61 bits, or the folder cannot be written.
    """
    require_model(model, "export.memory.write")
    require_one_of_each(model, "a folder of memory files")
    require_no_vectors(model, "a folder of memory files")
    found = model.ranges
    _check(model, found)
    words = vectors * sum(math.prod(reached.shape) for reached in found.values())
    if words > MOST_WORDS:
        raise ProbqError(
            f"test vectors of {words:,} words are more than the {MOST_WORDS:,} that are written; give fewer, as by "
            "vectors=2, or use C"
        )
    names = [_file_name(k, node) for k, node in enumerate(model.nodes)]
    values = model.values(vector_inputs(model, vectors))
    with replace_folder(path) as folder:
        nodes = []
        for node, name in zip(model.nodes, names, strict=True):
            entry = _described(node, found)
            entry["tensors"] = _tensors(folder, node, name, found)
            span = (found[node.name].low, found[node.name].high)
            entry["vector"] = write_words(folder, f"{name}.vector.mem", values[node.name], len(values[node.name]), span)
            nodes.append(entry)
        head = {"model_sha256": model.sha256(), "output": model.output, "output_scale": model.output_scale}
        write_index(folder, "memory", {**head, "nodes": nodes})


def run(path: str | PathLike[str], integers: Any) -> np.ndarray:
    """Return what a folder's files compute by an implementation of its own in numpy, int64 `[batch, ...]`.

    It first repeats the folder's test vectors, every node of them.

    Args:
        path: the path of a folder that `write` wrote.
        integers: those of `IntegerModel.quantize_input`, the batch first.

    Raises:
        ProbqError: the folder is damaged, its vectors do not agree with its parameters, or the integers do not fit.
    """
    with opened(path) as compute:
        return compute(integers)


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Callable[[Any], np.ndarray]]:
    """Give what `run` does as a function of the integers; files are read and test vectors repeated once.

    Raises:
        ProbqError: as `run`.
    """
    index = read_index(path, "memory")
    compute = reader.opened(Path(path), index)
    yield lambda integers: compute(np.asarray(integers))


def vector_inputs(model: IntegerModel, count: int) -> np.ndarray:
    """Return inputs for a model, int64 `[count, *shape]`: its least, its greatest, and random ones; always the same.

    Raises:
        ProbqError: there are less than two.
    """
    if count < 2:
        raise ProbqError(f"{count} test vectors are too few: they begin with the least and the greatest input")
    spec = model.input.attributes
    codes = np.random.default_rng(0).integers(spec["lo"], spec["hi"] + 1, (count, *spec["shape"]))
    codes[0], codes[1] = spec["lo"], spec["hi"]
    return np.asarray(spec.get("start", 0) + spec.get("step", 1) * codes, np.int64)


def _check(model: IntegerModel, found: Mapping[str, Range]) -> None:
    for node in model.nodes:
        transposed = bool(node.attributes.get("transposed"))
        if node.op not in reader.OPERATIONS or transposed or node.attributes.get("index"):
            what = "a transposed convolution" if transposed else "indices" if node.op == "input" else node.op
            raise ProbqError(
                f"node {node.name}: {what} has no memory form, only {', '.join(reader.OPERATIONS)}; export to C"
            )
        bound = found[node.name].bound
        if node.op == "requantize":
            largest = [int(np.abs(node.tensors[name]).max(initial=0)) for name in ("multiplier", "add")]
            bound = max(bound, found[node.inputs[0]].bound * largest[0] + largest[1])
        if bound >= WORD:
            raise ProbqError(
                f"node {node.name} may reach {bound:,}, the limit is {WORD - 1:,} (61 bits); use narrower widths"
            )


def _file_name(position: int, node: Node) -> str:
    """Return a name that is unique on every file system, the node's position and its name as far as it is plain."""
    return (
        f"{position:02d}_" + "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in node.name)[:80]
    )


def _described(node: Node, found: Mapping[str, Range]) -> dict[str, Any]:
    """Return everything on a node but its files."""
    reached = found[node.name]
    bits, signed = width_of(reached.low, reached.high)
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "inputs": list(node.inputs)}
    entry["attributes"] = dict(sorted(node.attributes.items()))  # a loaded model has them in another order
    entry |= {"shape": list(reached.shape), "low": reached.low, "high": reached.high, "bits": bits, "signed": signed}
    if node.op in LAYERS:
        low, high = accumulators(node, found[node.inputs[0]])
        entry["accumulator_bits"] = width_of(int(min(low)), int(max(high)))[0]
    return entry


def _tensors(folder: Path, node: Node, name: str, found: Mapping[str, Range]) -> dict[str, Any]:
    """Write a node's tensors, and return their entries in the index."""
    result = {}
    for key, tensor in sorted(node.tensors.items()):
        lines = len(tensor) if key in ("weight", "bias") else tensor.size
        result[key] = write_words(folder, f"{name}.{key}.mem", tensor, lines)
    if node.op == "requantize":
        table = thresholds(node, found[node.inputs[0]])
        if table is not None:
            result["threshold"] = write_words(folder, f"{name}.threshold.mem", table, math.prod(table.shape[:-1]))
    return result


def thresholds(node: Node, x: Range) -> np.ndarray | None:
    """Return the thresholds of a requantization, int64 `[*shape, hi - lo]`; None where it has too many codes or none.

    With a positive multiplier `m`, `code >= lo + k` exactly where `x >= T_k = ceil(((lo + k) 2^shift - add) / m)`.
    They are kept within `x.low .. x.high + 1`, where they decide the same.
    """
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    parts = np.broadcast_arrays(*(node.tensors[key].astype(object) for key in ("multiplier", "add", "shift")))
    multiplier, add, shift = (part[..., None] for part in parts)
    if not 0 < hi - lo <= THRESHOLDS or not multiplier.size or (multiplier <= 0).any():
        return None
    codes = np.arange(lo + 1, hi + 1).astype(object)
    exact = -((add - codes * 2**shift) // multiplier)
    return np.asarray(np.clip(exact, x.low, x.high + 1), np.int64)
