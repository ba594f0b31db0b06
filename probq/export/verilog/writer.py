"""A small network becomes unrolled, combinational Verilog: da4ml makes its adder trees, Icarus Verilog runs them.

The folder is da4ml's project; the module is `src/network.v`; `model_inp` and `model_out` hold the elements one after
the other, the first in the least significant bits, at the widths that `probq.json` lists.
"""

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.export.c.code.text import checked_name
from probq.export.common.artifact_folder import port, read_index, replace_folder, write_index
from probq.export.common.model_argument import require_model, require_no_vectors, require_one_of_each
from probq.export.verilog.trace import OPERATIONS, traced
from probq.integer import IntegerModel
from probq.integer.ranges import LAYERS, Range, accumulators
from probq.utils.errors import ProbqError
from probq.utils.optional_import import require

NAME = "network"
MOST_WEIGHTS = 16_384  # multiplications that are unrolled
LIMIT = 2**31
SECONDS = 600
PORTS: Mapping[str, tuple[str, ...]] = MappingProxyType({"input": ("low", "high"), "output": ()})

_BENCH = """\
`timescale 1ns/1ps
module bench;
    reg [{inputs}:0] x;
    wire [{outputs}:0] y;
    integer file;
    {name} network (.model_inp(x), .model_out(y));
    initial begin
        file = $fopen("examples.txt", "r");
        while ($fscanf(file, "%h", x) == 1) #1 $display("%h", y);
        $finish;
    end
endmodule
"""


def write(model: IntegerModel, path: str | PathLike[str], name: str = NAME) -> None:
    """Write the project; it appears whole or not at all.

    Args:
        model: the integers of a network quantized with `Plan(profile="shift")`: linear layers, requantizations by
            shifts, clips and reshapes; at most 16,384 weights.
        path: the path of the folder.
        name: the name of the module; a design that holds several networks gives each one its own.

    Raises:
        ProbqError: da4ml is missing, the model is too large or holds something else, an integer may leave 31 bits, the
            name is no identifier, or the folder cannot be written.
    """
    require_model(model, "export.verilog.write")
    require_one_of_each(model, "Verilog by da4ml")
    require_no_vectors(model, "Verilog by da4ml")
    checked_name(name)
    found = model.ranges
    _check(model, found)
    require("da4ml", "verilog")
    logic = traced(model, found)
    outputs = [_place(interval) for interval in logic.out_qint]
    if not any(bits for bits, _, _ in outputs):
        raise ProbqError(f"the output {model.output} is 0 for all inputs; there is nothing to build")
    with replace_folder(path) as folder:
        require("da4ml.codegen", "verilog").VerilogModel(logic, name, folder, print_latency=False).write()
        ends = {"low": found[model.input.name].low, "high": found[model.input.name].high}
        content: dict[str, Any] = {"model_sha256": model.sha256(), "output_scale": model.output_scale, "module": name}
        elements = [_place(interval) for interval in logic.inp_qint]
        content["input"] = {"shape": model.input.attributes["shape"], **ends, "elements": elements}
        content["output"] = {"shape": list(found[model.output].shape), "elements": outputs}
        write_index(folder, "verilog", content)


def _place(interval: Any) -> tuple[int, bool, int]:
    """Return bits, signedness and exponent of an element of a port, which holds `integer * 2^exponent`."""
    signed, whole, fraction = require("da4ml.types", "verilog").minimal_kif(interval)
    return max(int(signed) + int(whole) + int(fraction), 0), bool(signed), -int(fraction)


def _check(model: IntegerModel, found: Mapping[str, Range]) -> None:
    weights = sum(node.tensors["weight"].size * _uses(found[node.inputs[0]], node.op) for node in model.nodes
                  if node.op in LAYERS)  # fmt: skip
    for node in model.nodes:
        if node.op not in OPERATIONS or node.attributes.get("index"):
            what = "indices" if node.op == "input" else node.op
            raise ProbqError(f"node {node.name}: {what} has no Verilog form, only {', '.join(OPERATIONS)}; export to C")
        bound = found[node.name].bound
        if node.op in LAYERS:
            bound = max(int(max(abs(end))) for end in accumulators(node, found[node.inputs[0]]) if len(end))
        if bound >= LIMIT:
            raise ProbqError(
                f"node {node.name} may reach {bound:,}, the limit is {LIMIT - 1:,} (31 bits of Verilog's ports); "
                "use narrower widths"
            )
    if weights > MOST_WEIGHTS:
        raise ProbqError(
            f"the model unrolls to {weights:,} multiplications, more than the {MOST_WEIGHTS:,} that are written; "
            "export to HLS, which loops over them, or to C"
        )


def _uses(x: Range, op: str) -> int:
    """Return how often a layer's weight is applied to one example."""
    return math.prod(x.shape[:-1]) if op == "linear" else 1


def run(path: str | PathLike[str], integers: Any) -> np.ndarray:
    """Return what Icarus Verilog computes when it simulates the Verilog, int64 `[batch, ...]`.

    Args:
        path: the path of a folder that `write` wrote.
        integers: those of `IntegerModel.quantize_input`, the batch first.

    Raises:
        ProbqError: Icarus Verilog is missing or refuses the files, or the integers do not fit them.
    """
    with opened(path) as compute:
        return compute(integers)


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Callable[[Any], np.ndarray]]:
    """Give what `run` does as a function of the integers; the simulation is built once, for all of its calls.

    Raises:
        ProbqError: as `run`.
    """
    index = read_index(path, "verilog")
    path = Path(path).resolve()
    widths = [_width(port(index, end, numbers), end) for end, numbers in PORTS.items()]
    name = checked_name(index.get("module", ""))
    bench = _BENCH.format(inputs=widths[0] - 1, outputs=widths[1] - 1, name=name)
    sources = [*sorted((path / "src" / "static").glob("*.v")), path / "src" / f"{name}.v"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "bench.v").write_text(bench, encoding="ascii")
        try:
            for memory in (path / "src" / "memfiles").glob("*"):
                shutil.copyfile(memory, folder / memory.name)
        except OSError as error:
            raise ProbqError(f"cannot read {path}: {error}; write the folder again") from error
        _called(["iverilog", "-g2012", "-s", "bench", "-o", "bench", "bench.v", *map(str, sources)], folder)
        yield lambda integers: _simulated(folder, index, np.asarray(integers))


def _width(spec: Mapping[str, Any], end: str) -> int:
    """Return how many bits a port has, 1 at least.

    Raises:
        ProbqError: its elements are not bits, signedness and exponent of each number of its shape.
    """
    elements = spec.get("elements")
    whole = isinstance(elements, list) and len(elements) == math.prod(spec["shape"])
    if not isinstance(elements, list) or not whole or not all(map(_is_element, elements)):
        raise ProbqError(f"the elements of the {end} do not fit its shape; write the folder again")
    return max(1, sum(bits for bits, _, _ in elements))


def _is_element(entry: Any) -> bool:
    if not isinstance(entry, list) or [type(part) for part in entry] != [int, bool, int]:
        return False
    return bool(0 <= entry[0] <= 64 and abs(entry[2]) <= 4096)


def _simulated(folder: Path, index: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Return what the simulation in the folder gives."""
    spec = index["input"]
    if x.ndim == 0 or x.dtype.kind not in "iu" or list(x.shape[1:]) != spec["shape"]:
        raise ProbqError(f"expected integers of shape [batch, {spec['shape']}], not {x.dtype} of shape {x.shape}")
    if x.size and not spec["low"] <= x.min() <= x.max() <= spec["high"]:
        raise ProbqError(f"integers {x.min()} .. {x.max()} leave the range {spec['low']} .. {spec['high']}")
    shape = (len(x), *index["output"]["shape"])
    if not len(x):
        return np.zeros(shape, np.int64)
    words = [_joined(row, spec["elements"]) for row in x.reshape(len(x), -1).tolist()]
    (folder / "examples.txt").write_text("".join(f"{word:x}\n" for word in words), encoding="ascii")
    lines = _called(["vvp", "-n", "bench"], folder).split()
    if len(lines) != len(words):
        raise ProbqError(f"the simulation gave {len(lines)} outputs for {len(words)} inputs; write the model again")
    return np.array([_split(line, index["output"]["elements"]) for line in lines], np.int64).reshape(shape)


def _joined(row: Sequence[int], elements: Sequence[Sequence[Any]]) -> int:
    word, place = 0, 0
    for value, (bits, _, exponent) in zip(row, elements, strict=True):
        word |= ((value >> exponent if exponent > 0 else value << -exponent) & ((1 << bits) - 1)) << place
        place += bits
    return word


def _split(line: str, elements: Sequence[Sequence[Any]]) -> list[int]:
    """Return the elements of an output word.

    Raises:
        ProbqError: the simulator left bits undefined.
    """
    try:
        word = int(line, 16)
    except ValueError as error:
        raise ProbqError(
            f"the simulation gave {line.strip()!r:.60}, which is no number; write the model again"
        ) from error
    values = []
    for bits, signed, exponent in elements:
        value = word & ((1 << bits) - 1)
        value -= (1 << bits) if signed and bits and value >> (bits - 1) else 0
        values.append(value << exponent if exponent > 0 else value >> -exponent)
        word >>= bits
    return values


def _called(command: list[str], folder: Path) -> str:
    """Return what a program of Icarus Verilog prints."""
    if shutil.which(command[0]) is None:
        raise ProbqError(f"{command[0]} is not on the PATH; install Icarus Verilog (on Debian: apt install iverilog)")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProbqError(f"{command[0]} took more than {SECONDS} seconds; give it fewer inputs") from error
    if done.returncode:
        raise ProbqError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[:1000]}")
    return done.stdout
