"""This module runs what an exporter wrote, and compares every integer with the model's own."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from probq.export.common.model_argument import require_model
from probq.export.targets import recognize
from probq.integer import IntegerModel
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path


@dataclass(frozen=True)
class Report:
    """A report is what `verify` found, true where at least one input was compared and none differs.

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
    """Run an exported file or folder on real inputs and count the outputs that differ from the model's.

    C headers, Verilog and HLS projects are programs, compiled and run with the user's rights: verify your own alone.

    Args:
        model: the integer model that was written.
        path: of the file: `.h` is a C header, `.onnx` is ONNX or, with nodes of its domain, QONNX; or of the folder,
            whose `probq.json` names its target.
        x: real inputs (or indices) as `model(x)` takes them, `[batch, ...]`.

    Raises:
        ProbqError: the target is not known, a library or compiler is missing, the file does not run, or its output
            has another shape.
    """
    return verify_parts(model, path, [x])


def verify_parts(
    model: IntegerModel, path: str | PathLike[str], parts: Iterable[Any], done: Callable[[int], object] | None = None
) -> Report:
    """Do as `verify` on real inputs that come in parts; the artefact is compiled or loaded once for all of them.

    Args:
        model: the integer model that was written.
        path: the path of the file or folder.
        parts: real inputs, each `[batch, ...]`.
        done: called with the number of inputs of every part that was compared.

    Raises:
        ProbqError: as `verify`.
    """
    require_model(model, "export.verify")
    path = checked_path(path)
    target = recognize(path)
    compared = differing = 0
    start = time.perf_counter()
    with target.open(path) as compute:
        seconds = time.perf_counter() - start
        for x in parts:
            integers = model.quantize_input(x)
            expected = model.run(integers)
            start = time.perf_counter()
            found = compute(integers)
            seconds += time.perf_counter() - start
            differing += _differing(found, expected, path)
            compared += len(expected)
            if done is not None:
                done(len(expected))
    return Report(target.module, compared, differing, seconds)


def _differing(found: np.ndarray, expected: np.ndarray, path: str | PathLike[str]) -> int:
    """Return how many outputs differ.

    Raises:
        ProbqError: they have another shape.
    """
    if found.shape != expected.shape:
        raise ProbqError(
            f"{path} gives outputs of shape {list(found.shape)}, the model {list(expected.shape)}; "
            "it was written from another model"
        )
    return int((found != expected).any(axis=tuple(range(1, expected.ndim))).sum())
