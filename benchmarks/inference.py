"""What one inference of LeNet-5 takes, as a ratio to float32 in ONNX Runtime: generated C and ONNX integers.

CPU time of one thread, batch 1 and 64, interleaved repetitions. The network is 32C5-MP2-64C5-MP2-512-10 on 28x28 (4.3
MMAC) with random weights: no kernel here depends on their values. "C 1x2" has 1-bit weights and 2-bit inputs in the
hidden layers (conv2 and fc1), 8 bits in the first and last; "4x8, 2x4, 8x4, 8x8" names the four layers. Each row
includes one call from Python: through ctypes for C, through ONNX Runtime's binding for ONNX; "nothing" is a graph of
one Identity on the same input.

    python benchmarks/inference.py --repetitions 300 --out inference.json

Needs onnx, onnxruntime (`pip install "probq[onnx]"`) and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from integer_lenet import LAYERS, integer_lenet
from onnx import TensorProto, helper, numpy_helper

from probq.export import c
from probq.export.c.compiler import build
from probq.export.onnx import writer as exported
from probq.integer import IntegerModel

WARM_UP = 20
WIDTHS = {
    "C 8x8": ((8, 8, 8, 8), (8, 8, 8, 8)),
    "C 4x4": ((8, 4, 4, 8), (8, 4, 4, 8)),
    "C 2x2": ((8, 2, 2, 8), (8, 2, 2, 8)),
    "C 1x2": ((8, 1, 1, 8), (8, 2, 2, 8)),
    "C 1x1": ((8, 1, 1, 8), (8, 1, 1, 8)),
}
ONNX_WIDTHS = {
    "ONNX 8x8": ((8, 8, 8, 8), (8, 8, 8, 8)),
    "ONNX 4x4": ((8, 4, 4, 8), (8, 4, 4, 8)),
    "ONNX 4x8, 2x4, 8x4, 8x8": ((4, 2, 8, 8), (8, 4, 4, 8)),
}
SHARED = """\
#include "net.h"
void infer(const uint8_t *x, int32_t *y, long n)
{
    for (long i = 0; i < n; i++) net_run(x + i * net_INPUT_SIZE, y + i * net_OUTPUT_SIZE);
}
"""


def float_lenet(rng: np.random.Generator) -> bytes:
    """LeNet-5 in float32, as ONNX."""
    arrays = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in LAYERS}
    arrays |= {f"{name}.bias": rng.normal(0, 0.05, shape[0]).astype(np.float32) for name, shape in LAYERS}
    nodes, x = [], "input"
    for name, shape in LAYERS:
        if name == "fc1":
            nodes.append(helper.make_node("Flatten", [x], [x := "flat"]))
        op, spec = ("Conv", {}) if len(shape) == 4 else ("Gemm", {"transB": 1})
        nodes.append(helper.make_node(op, [x, name, f"{name}.bias"], [x := f"{name}.out"], **spec))
        if name != "fc2":
            nodes.append(helper.make_node("Relu", [x], [x := f"{name}.relu"]))
        if len(shape) == 4:
            pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
            nodes.append(helper.make_node("MaxPool", [x], [x := f"{name}.pool"], **pool))
    return model_of(nodes, x, 10, {name: numpy_helper.from_array(a, name) for name, a in arrays.items()})


def model_of(nodes: Sequence[Any], output: str, size: int, constants: dict[str, Any]) -> bytes:
    """A serialized ONNX model with one input of 28x28 pixels."""
    ends = [("input", ["n", 1, 28, 28]), (output, ["n", size] if size else ["n", 1, 28, 28])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def session(model: bytes | str) -> Any:
    """ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_c(model: IntegerModel, folder: Path, flags: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """The generated C as a function of a batch, checked against the interpreter."""
    folder.mkdir()
    c.write(model, folder / "net.h")
    (folder / "net.c").write_text(SHARED, encoding="ascii")
    build(folder / "net.c", folder / "net.so", [*flags, "-shared", "-fPIC"])
    function = ctypes.CDLL(str(folder / "net.so")).infer
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]

    def run(x: np.ndarray) -> np.ndarray:
        y = np.empty((len(x), 10), np.int32)
        function(x.ctypes.data, y.ctypes.data, len(x))
        return y

    x = np.random.default_rng(1).integers(0, 256, (100, 1, 28, 28)).astype(np.uint8)
    if not np.array_equal(run(x), model.run(x)):
        raise SystemExit("the generated C differs from the interpreter")
    return run


def subjects(folder: Path, flags: Sequence[str]) -> dict[str, tuple[Callable[[np.ndarray], Any], type]]:
    """What is measured: a function of a batch and the type it takes."""
    rng = np.random.default_rng(0)
    plain = session(float_lenet(rng))
    nothing = session(model_of([helper.make_node("Identity", ["input"], ["same"])], "same", 0, {}))
    found: dict[str, tuple[Callable[[np.ndarray], Any], type]] = {
        "ONNX Runtime float32": (lambda x: plain.run(None, {"input": x}), np.float32),
        "ONNX Runtime, nothing": (lambda x: nothing.run(None, {"input": x}), np.float32),
    }
    for name, widths in WIDTHS.items():
        model = integer_lenet(*widths, rng)
        found[name] = (in_c(model, folder / name.replace(" ", ""), flags), np.uint8)
    for name, widths in ONNX_WIDTHS.items():
        exported.write(integer_lenet(*widths, rng), folder / "net.onnx")
        integer = session(str(folder / "net.onnx"))
        found[name] = (lambda x, s=integer: s.run(None, {"input": x}), np.uint8)
    return found


def measure(
    runs: dict[str, tuple[Callable[[np.ndarray], Any], type]], batch: int, repetitions: int
) -> list[dict[str, Any]]:
    """Medians over interleaved repetitions, in microseconds an example, and ratios to the first subject."""
    x = np.random.default_rng(2).integers(0, 256, (batch, 1, 28, 28))
    inputs = {name: np.ascontiguousarray(x.astype(kind)) for name, (_, kind) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(WARM_UP + repetitions):
        for name, (run, _) in runs.items():
            run(inputs[name])  # weights and tables are in the cache again, as in a loop of one's own
            start = time.thread_time()
            run(inputs[name])
            if repetition >= WARM_UP:
                times[name].append((time.thread_time() - start) * 1e6 / batch)
    first = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratios = statistics.quantiles([a / b for a, b in zip(own, first, strict=True)], n=4)
        rows.append({"subject": name, "batch": batch, "microseconds": statistics.median(own), "ratio": ratios[1],
                     "quartiles": [ratios[0], ratios[2]]})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--flags", default="-O3 -march=native", help="for the C compiler")
    parser.add_argument("--out", type=Path, help="a JSON file for the records")
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        runs = subjects(Path(folder), options.flags.split())
        for batch in options.batch:
            print(f"\nbatch {batch:<20} {'us / example':>12} {'ratio':>8}   quartiles of the ratio")
            for row in measure(runs, batch, max(options.repetitions // batch, 20)):
                low, high = row["quartiles"]
                print(
                    f"{row['subject']:<26} {row['microseconds']:>12.1f} {row['ratio']:>8.2f}   {low:.2f} - {high:.2f}"
                )
                records.append(row)
    if options.out:
        versions = {
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        content = {"flags": options.flags, "processor": platform.processor(), "versions": versions, "rows": records}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
