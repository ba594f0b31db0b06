"""This module runs what an exporter wrote, and compares every integer with the model's own."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from probq.export.common.model_argument import require_model
from probq.export.targets import recognize
from probq.integer import IntegerModel
from probq.integer.ports.outputs import by_name
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path


@dataclass(frozen=True)
class Report:
    """A report is what `verify` found, true where at least one input was compared and none differs.

    Attributes:
        target: "onnx", "qonnx", "c", "memory", "verilog" or "hls".
        compared: inputs.
        differing: inputs for which any integer of any output differs.
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
            expected = list(by_name(model.output, model.run(integers)).values())
            start = time.perf_counter()
            found = compute(integers)
            seconds += time.perf_counter() - start
            differing += _differing(found, expected, path)
            compared += len(expected[0])
            if done is not None:
                done(len(expected[0]))
    return Report(target.module, compared, differing, seconds)


def _differing(found: Any, expected: Sequence[np.ndarray], path: str | PathLike[str]) -> int:
    """Return for how many inputs any integer of any output differs.

    Raises:
        ProbqError: there are other outputs, or some have another shape.
    """
    arrays = list(found) if isinstance(found, tuple) else [found]
    if [array.shape for array in arrays] != [own.shape for own in expected]:
        shapes, own = (" and ".join(str(list(one.shape)) for one in each) for each in (arrays, expected))
        raise ProbqError(f"{path} gives outputs of shape {shapes}, the model {own}; it was written from another model")
    wrong = [(a != b).any(axis=tuple(range(1, b.ndim))) for a, b in zip(arrays, expected, strict=True)]
    return int(np.logical_or.reduce(wrong).sum())
