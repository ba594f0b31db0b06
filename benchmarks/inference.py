"""What one inference takes, as a ratio to float32 in ONNX Runtime: generated C and ONNX integers.

CPU time of one thread, batch 1 and 64, interleaved repetitions. Weights are random: no kernel here depends on their
values. LeNet-5 is 32C5-MP2-64C5-MP2-512-10 on 28x28 (4.3 MMAC); its "C 1x2" has 1-bit weights and 2-bit inputs in the
hidden layers (conv2 and fc1), 8 bits in the first and last; "4x8, 2x4, 8x4, 8x8" names the four layers. ResNet-8,
DS-CNN and the Transformer of `sequences.py` have one width in all layers, and come from `probq.quantize` and
`probq.lower`; "ONNX Runtime int8" is the float network as its own quantizer makes it, in quantize-dequantize pairs of
8 bits, rounded otherwise. Each row includes one call from Python: through ctypes for C, through ONNX Runtime's binding
for ONNX; "nothing" is a graph of one Identity on the same input.

    python benchmarks/inference.py --repetitions 300 --out results_inference.json
    python benchmarks/inference.py --network ResNet-8 DS-CNN Transformer --out results_inference_networks.json

Needs onnx, onnxruntime (`pip install "probq[onnx]"`), a C compiler and, for networks other than LeNet-5, onnxscript.
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
from inference_networks import NETWORKS, integer_network, write_float, write_int8
from integer_lenet import LAYERS, integer_lenet
from onnx import TensorProto, helper, numpy_helper

from probq.export import c
from probq.export.c.compiler import build
from probq.export.onnx import writer as exported
from probq.integer import IntegerModel

Subjects = dict[str, tuple[Callable[[np.ndarray], Any], type]]
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
UNIFORM = ((8, 8), (4, 4), (2, 2), (1, 2))  # bits of weights and inputs of the other networks in C
UNIFORM_ONNX = ((8, 8), (4, 4))
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


def in_c(model: IntegerModel, folder: Path, flags: Sequence[str], x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The generated C as a function of a batch, checked against the interpreter."""
    expected = model.run(x)
    shape = expected.shape[1:]
    folder.mkdir()
    c.write(model, folder / "net.h")
    (folder / "net.c").write_text(SHARED, encoding="ascii")
    build(folder / "net.c", folder / "net.so", [*flags, "-shared", "-fPIC"])
    function = ctypes.CDLL(str(folder / "net.so")).infer
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]

    def run(x: np.ndarray) -> np.ndarray:
        y = np.empty((len(x), *shape), np.int32)
        function(x.ctypes.data, y.ctypes.data, len(x))
        return y

    if not np.array_equal(run(x), expected):
        raise SystemExit("the generated C differs from the interpreter")
    return run


def in_onnx(model: IntegerModel, path: Path, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The ONNX integers as a function of a batch, checked against the interpreter."""
    exported.write(model, path)
    integer = session(str(path))

    def run(x: np.ndarray) -> np.ndarray:
        return integer.run(None, {"input": x})[0]

    if not np.array_equal(run(x), model.run(x)):
        raise SystemExit("ONNX Runtime differs from the interpreter")
    return run


def lenet(folder: Path, flags: Sequence[str]) -> Subjects:
    """What is measured of LeNet-5: a function of a batch and the type it takes."""
    rng = np.random.default_rng(0)
    plain = session(float_lenet(rng))
    nothing = session(model_of([helper.make_node("Identity", ["input"], ["same"])], "same", 0, {}))
    found: Subjects = {
        "ONNX Runtime float32": (lambda x: plain.run(None, {"input": x}), np.float32),
        "ONNX Runtime, nothing": (lambda x: nothing.run(None, {"input": x}), np.float32),
    }
    x = inputs("LeNet-5", 100)
    for name, widths in WIDTHS.items():
        found[name] = (in_c(integer_lenet(*widths, rng), folder / name.replace(" ", ""), flags, x), np.uint8)
    for name, widths in ONNX_WIDTHS.items():
        found[name] = (in_onnx(integer_lenet(*widths, rng), folder / "net.onnx", x), np.uint8)
    return found


def others(network: str, folder: Path, flags: Sequence[str]) -> Subjects:
    """The same of another network."""
    write_float(network, folder / "float.onnx")
    plain, x = session(str(folder / "float.onnx")), inputs(network, 100)
    real, whole = (np.float32, np.uint8) if NETWORKS[network].count is None else (np.int64, np.int64)
    found: Subjects = {"ONNX Runtime float32": (lambda x: plain.run(None, {"input": x}), real)}
    if NETWORKS[network].count is None:
        write_int8(network, folder / "float.onnx", folder / "int8.onnx")
        own = session(str(folder / "int8.onnx"))
        found["ONNX Runtime int8"] = (lambda x: own.run(None, {"input": x}), real)
    models = {bits: integer_network(network, *bits) for bits in UNIFORM}
    for bits in UNIFORM:
        name = "C {}x{}".format(*bits)
        found[name] = (in_c(models[bits], folder / name, flags, x), np.uint8)
    for bits in UNIFORM_ONNX:
        name = "ONNX {}x{}".format(*bits)
        found[name] = (in_onnx(models[bits], folder / f"{name}.onnx", x.astype(whole)), whole)
    return found


def inputs(network: str, batch: int) -> np.ndarray:
    """Random integers that the network reads, uint8."""
    if network in NETWORKS:
        return NETWORKS[network].integers(batch)
    return np.random.default_rng(2).integers(0, 256, (batch, 1, 28, 28)).astype(np.uint8)


def measure(runs: Subjects, x: np.ndarray, repetitions: int) -> list[dict[str, Any]]:
    """Medians over interleaved repetitions, in microseconds an example, and ratios to the first subject."""
    batch, given = len(x), {name: np.ascontiguousarray(x.astype(kind)) for name, (_, kind) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(WARM_UP + repetitions):
        for name, (run, _) in runs.items():
            run(given[name])  # weights and tables are in the cache again, as in a loop of one's own
            start = time.thread_time()
            run(given[name])
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
    parser.add_argument("--network", nargs="+", choices=["LeNet-5", *NETWORKS], default=["LeNet-5"])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--flags", default="-O3 -march=native", help="for the C compiler")
    parser.add_argument("--out", type=Path, help="a JSON file for the records")
    options = parser.parse_args()
    flags = options.flags.split()
    records = []
    for network in options.network:
        with tempfile.TemporaryDirectory() as folder:
            subjects = others(network, Path(folder), flags) if network in NETWORKS else lenet(Path(folder), flags)
            for batch in options.batch:
                print(f"\n{network}, batch {batch:<10} {'us / example':>12} {'ratio':>8}   quartiles of the ratio")
                for row in measure(subjects, inputs(network, batch), max(options.repetitions // batch, 20)):
                    low, high = row["quartiles"]
                    about = f"{row['microseconds']:>12.1f} {row['ratio']:>8.2f}   {low:.2f} - {high:.2f}"
                    print(f"{row['subject']:<26} {about}", flush=True)
                    records.append({"network": network, **row})
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
