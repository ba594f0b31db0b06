"""Post-training quantization by ONNX Runtime and by Brevitas, for the table of `post_training.py`.

The same float networks, draws of 512 examples and test images, uniform widths, the network's input at 8 bits, one scale
for each output channel of a weight. What is tested is each tool's own execution: ONNX Runtime's of its QDQ graph, and
Brevitas' simulation in float32, whose biases stay float.

ONNX Runtime: `quantize_static`, int8 weights, uint8 inputs, at 8/8 alone; calibration by extremes, or of
"best" by extremes, percentiles or entropy. Brevitas: normalisation folded, weights' and inputs' scales by least squared
error; "best" is one of that, bias correction, GPFQ, GPFQ and bias correction, all after cross-layer equalization or
without, and normalisation estimated anew in place of folded. As in probq, the loss on the examples chooses.

    python benchmarks/post_training_tools.py --data DIR --kept FOLDER --out results_post_training_tools.jsonl
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trained_networks
from post_training_subject import LADDERS, Subject
from post_training_table import BITS
from protocol import accuracy, completed, in_parts, machine, versions
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
TOOLS = ("ONNX Runtime", "Brevitas")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as in post_training.py")
    parser.add_argument("--kept", type=Path, required=True, help=trained_networks.HELP)
    parser.add_argument("--draws", type=int, default=5, help="number of draws of examples, from 0 on")
    parser.add_argument("--network", choices=LADDERS, nargs="*", default=["LeNet-5", "ResNet-8"])
    parser.add_argument("--tool", choices=TOOLS, nargs="*", default=list(TOOLS))
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def one(subject: Any, network: str, draw: int, tool: str, rounding: str) -> dict[str, Any]:
    """One tool at all widths that it has."""
    own: Subject = subject(network, draw)
    record: dict[str, Any] = {"network": network, "draw": draw, "method": tool, "rounding": rounding}
    record |= {"float": own.float_accuracy(), "at": {}}
    for bits in BITS if tool == "Brevitas" else (8,):
        start = time.perf_counter()
        variants = brevitas(own, bits) if tool == "Brevitas" else onnx_runtime(own)
        name, run = next(variants) if rounding == "nearest" else min(variants, key=lambda pair: own.loss(pair[1]))
        seconds = round(time.perf_counter() - start, 2)
        test = accuracy(in_parts(run, own.test[0]), own.test[1])
        record["at"][f"bops {bits}"] = {"test": test, "loss": own.loss(run), "chosen": name, "seconds": seconds}
    return record | {"machine": machine(), "versions": versions() | tool_versions()}


def tool_versions() -> dict[str, str]:
    """Versions of both tools."""
    from importlib.metadata import version

    return {name: version(name) for name in ("brevitas", "onnxruntime")}


def onnx_runtime(own: Subject) -> Iterator[tuple[str, Run]]:
    """Networks quantized by ONNX Runtime, with the name of the calibration."""
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Examples(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"input": x.contiguous().numpy()} for x, _ in own.batches])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, ready = Path(folder, "plain.onnx"), Path(folder, "ready.onnx")
        example = own.batches[0][0][:1].contiguous()
        net = copy.deepcopy(own.net).to(memory_format=torch.contiguous_format)
        names = {"input_names": ["input"], "output_names": ["output"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (example,), plain, dynamic_axes={"input": {0: "n"}}, dynamo=False, **names)
        quant_pre_process(str(plain), str(ready))
        for method in ("MinMax", "Percentile", "Entropy"):
            path = Path(folder, f"{method}.onnx")
            ort.quantize_static(
                ready,
                path,
                Examples(),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=getattr(ort.CalibrationMethod, method),
            )
            yield method, _session(path)


def _session(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options)
    return lambda x: torch.from_numpy(session.run(None, {"input": x.contiguous().numpy()})[0])


def brevitas(own: Subject, bits: int) -> Iterator[tuple[str, nn.Module]]:
    """Networks quantized by Brevitas, with the names of what was done to them."""
    from brevitas.graph.calibrate import bias_correction_mode, norm_correction_mode

    plain, changed = (_prepared(own, equalized, merged=True).state_dict() for equalized in (False, True))
    several = any(not torch.equal(plain[name], changed[name]) for name in plain)
    for equalized in (False, True) if several else (False,):
        label = ", equalized" if equalized else ""
        rounded = _calibrated(own, bits, equalized, merged=True)
        yield f"nearest{label}", rounded
        yield f"bias{label}", _passed(own, copy.deepcopy(rounded), bias_correction_mode)
        greedy = _greedy(own, _calibrated(own, bits, equalized, merged=True))
        yield f"gpfq{label}", greedy
        yield f"gpfq and bias{label}", _passed(own, copy.deepcopy(greedy), bias_correction_mode)
    if own.norms:
        yield "norms", _passed(own, _calibrated(own, bits, equalized=False, merged=False), norm_correction_mode)


def _prepared(own: Subject, equalized: bool, merged: bool) -> nn.Module:
    """A float network as Brevitas wants it."""
    from brevitas.graph.quantize import preprocess_for_quantize

    net = copy.deepcopy(own.net).to(memory_format=torch.contiguous_format)
    return preprocess_for_quantize(net, equalize_iters=20 if equalized else 0, merge_bn=merged)


def _calibrated(own: Subject, bits: int, equalized: bool, merged: bool) -> nn.Module:
    """A network with Brevitas' quantizers at the inputs and weights of its layers, calibrated."""
    import brevitas.nn as qnn
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.quant import Int8WeightPerChannelFloatMSE, Uint8ActPerTensorFloatMSE

    net = _prepared(own, equalized, merged)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for width, others in ((8, layers[1:]), (bits, layers[:1])):
        options: dict[str, Any] = {
            "weight_quant": Int8WeightPerChannelFloatMSE,
            "weight_bit_width": bits,
            "input_quant": Uint8ActPerTensorFloatMSE,
            "input_bit_width": width,
            "return_quant_tensor": False,
        }
        kinds = {nn.Conv2d: (qnn.QuantConv2d, options), nn.Linear: (qnn.QuantLinear, options)}
        net = layerwise_quantize(net, kinds, name_blacklist=others)
    net = _passed(own, net, calibration_mode)
    with torch.no_grad():
        net(own.batches[0][0])  # scales of weights start in a pass outside of the mode
    return net


@torch.no_grad()
def _passed(own: Subject, net: nn.Module, mode: Any) -> nn.Module:
    """A network after the examples passed it within a mode."""
    net.eval()
    with mode(net):
        for x, _ in own.batches:
            net(x)
    return net.eval()


@torch.no_grad()
def _greedy(own: Subject, net: nn.Module) -> nn.Module:
    """A network after greedy path following, layer by layer."""
    from brevitas.graph.gpfq import gpfq_mode

    net.eval()
    with gpfq_mode(net) as greedy:
        for _ in range(greedy.num_layers):
            for x, _ in own.batches:
                greedy.model(x)
            greedy.update()
    return net.eval()


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of."""
    return record["network"], record["draw"], record["method"], record["rounding"]


def main() -> None:
    """Make what is missing."""
    options = arguments()
    subject = functools.lru_cache(1)(functools.partial(Subject, folder=options.data, kept=options.kept))
    runs = [
        (network, draw, tool, rounding)
        for network in options.network
        for draw in range(options.draws)
        for tool in options.tool
        for rounding in ("nearest", "best")
    ]
    completed(options.out, runs, kind, functools.partial(one, subject))


if __name__ == "__main__":
    main()
