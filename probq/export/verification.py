"""Running what an exporter wrote and comparing every integer with the model's own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probq.errors import ProbqError
from probq.export.extras import needed
from probq.export.folders import target_of
from probq.integer import IntegerModel

Run = Callable[[Path, np.ndarray], np.ndarray]
QONNX_DOMAINS = ("qonnx.", "finn.")


@dataclass(frozen=True)
class Report:
    """What `verify` found; true where at least one input was compared and none differs.

    Attributes:
        target: "onnx", "qonnx", "c", "memory", "verilog" or "hls".
        compared: inputs.
        differing: inputs for which any integer of the output differs.
        seconds: that the artefact took for all inputs, loading or compiling it included.
    """

    target: str
    compared: int
    differing: int
    seconds: float

    def __bool__(self) -> bool:
        return self.compared > 0 and self.differing == 0

    def __str__(self) -> str:
        return f"{self.target}: {self.differing:,} of {self.compared:,} outputs differ ({self.seconds:.1f} s)"


def verify(model: IntegerModel, path: str | PathLike[str], x: Any) -> Report:
    """Runs an exported file or folder on real inputs and counts the outputs that differ from the model's.

    Args:
        model: the integer model that was written.
        path: of the file: `.h` is a C header, `.onnx` is ONNX or, with nodes of its domain, QONNX; or of the folder,
            whose `probq.json` names its target.
        x: real inputs (or indices) as `model(x)` takes them, `[batch, ...]`.

    Raises:
        ProbqError: the target is not known, a library or compiler is missing, the file does not run, or its output
            has another shape.
    """
    target, run = _target(Path(path))
    integers = model.quantize_input(x)
    expected = model.run(integers)
    start = time.perf_counter()
    found = run(Path(path), integers)
    seconds = time.perf_counter() - start
    if found.shape != expected.shape:
        raise ProbqError(
            f"{path} gives outputs of shape {list(found.shape)}, the model {list(expected.shape)}; "
            "it was written from another model"
        )
    differing = (found != expected).any(axis=tuple(range(1, expected.ndim)))
    return Report(target, len(expected), int(differing.sum()), seconds)


def _target(path: Path) -> tuple[str, Run]:
    """The target that wrote a file or folder, by its name and content, and what runs it."""
    from probq.export import c, hls, memory, onnx, qonnx, verilog

    if path.is_dir():
        folders: dict[str, Run] = {"memory": memory.run, "verilog": verilog.run, "hls": hls.run}
        target = target_of(path)
        if target not in folders:
            raise ProbqError(f"{path} is of no known target ({target!r:.40}); give a folder that write wrote")
        return target, folders[target]
    if not path.is_file():
        raise ProbqError(f"there is no file {path}; give the path that write was given")
    if path.suffix == ".h":
        return "c", c.run
    if path.suffix != ".onnx":
        raise ProbqError(f"{path} is of no known target; give a file that ends in .onnx or .h")
    try:
        proto = needed("onnx", "onnx").load(str(path))
    except ProbqError:
        raise
    except Exception as error:  # protobuf's exceptions have no common base with onnx's
        raise ProbqError(f"{path} is not an ONNX file, or is damaged ({error}); write it again") from error
    domains = {node.domain for node in proto.graph.node}
    return ("qonnx", qonnx.run) if any(domain.startswith(QONNX_DOMAINS) for domain in domains) else ("onnx", onnx.run)
