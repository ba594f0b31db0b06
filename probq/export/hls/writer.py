"""An integer model becomes an hls4ml project for Vitis HLS (`io_stream`), whose C++ emulation g++ runs.

The way there is the QONNX form (flavour "hls4ml"): scales of a layer's channels become one scale with wider
integers, and no accumulator lies on a rounding tie. The folder is hls4ml's project with the top function `network`;
values between layers are streamed, channels last.
"""

import contextlib
import io
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.export import qonnx
from probq.export.c.code.text import checked_name
from probq.export.common import results
from probq.export.common.artifact_folder import port, read_index, replace_folder, write_index
from probq.export.common.model_argument import require_model, require_no_vectors, require_one_of_each
from probq.export.hls.check import check_model
from probq.export.hls.rewrite import rewritten
from probq.export.qonnx.graph import width
from probq.integer import IntegerModel
from probq.utils.errors import ProbqError
from probq.utils.optional_import import require

NAME = "network"
PART = "xcvu13p-flga2577-2-e"
STRATEGIES = ("Resource", "Latency")
SECONDS = 1800
PORTS: Mapping[str, tuple[str, ...]] = MappingProxyType({"input": ("low", "high", "exponent"), "output": ("exponent",)})

_MAIN = """\
#include "{name}_bridge.cpp"
#include <cstdio>

int main() {{
    static float x[{inputs}], y[{outputs}];
    std::FILE *in = std::fopen("inputs.bin", "rb"), *out = std::fopen("outputs.bin", "wb");
    if (!in || !out) return 1;
    while (std::fread(x, sizeof x, 1, in) == 1) {{
        {name}_float(x, y);
        if (std::fwrite(y, sizeof y, 1, out) != 1) return 1;
    }}
    return std::fclose(out);
}}
"""


def write(
    model: IntegerModel,
    path: str | PathLike[str],
    part: str = PART,
    clock_ns: float = 5.0,
    strategy: str = "Resource",
    name: str = NAME,
) -> None:
    """Write the project; it appears whole or not at all.

    Args:
        model: the integers of a network quantized with `Plan(profile="shift")`: its requantizations only shift.
        path: the path of the folder.
        part: the part of the FPGA that synthesis is for.
        clock_ns: period of the clock in nanoseconds.
        strategy: hls4ml's, "Resource" (multipliers are shared) or "Latency" (all is unrolled).
        name: the name of the top function; a design that holds several networks gives each one its own.

    Raises:
        ProbqError: hls4ml is missing or refuses the model, the model has an operation or a width beyond it, or the
            folder cannot be written.
    """
    require_model(model, "export.hls.write")
    require_one_of_each(model, "an hls4ml project")
    require_no_vectors(model, "an hls4ml project")
    checked_name(name)
    if strategy not in STRATEGIES:
        raise ProbqError(f"there is no strategy {strategy!r:.80}; use 'Resource' or 'Latency'")
    digest, model = model.sha256(), rewritten(model)
    check_model(model)
    require("hls4ml", "hls")
    wrapper, notes = _prepared(model)
    exponents = {end: json.loads(notes[f"probq.{end}_exponent"]) for end in ("input", "output")}
    found = model.ranges
    with replace_folder(path) as folder:
        _convert(wrapper, folder, _precision(model, exponents["input"]), (part, clock_ns, strategy), name)
        content: dict[str, Any] = {"model_sha256": digest, "output_scale": model.output_scale, "function": name}
        reached = found[model.input.name]
        content["input"] = {"shape": list(reached.shape), "exponent": exponents["input"]}
        content["input"] |= {"low": reached.low, "high": reached.high}
        content["output"] = {"shape": list(found[model.output].shape), "exponent": exponents["output"]}
        write_index(folder, "hls", content)
        _forget(folder, Path(path))


def _prepared(model: IntegerModel) -> tuple[Any, dict[str, str]]:
    """Return the QONNX graph as hls4ml reads it (channels last, no node without effect), and its metadata."""
    with tempfile.TemporaryDirectory() as temporary:
        qonnx.write(model, Path(temporary) / "model.onnx", "hls4ml")
        proto = require("onnx", "hls").load(str(Path(temporary) / "model.onnx"))
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    _without_identity(proto.graph)
    cleanup = require("qonnx.util.cleanup", "hls").cleanup_model
    last = require("qonnx.transformation.channels_last", "hls").ConvertToChannelsLastAndClean
    matmul = require("qonnx.transformation.gemm_to_matmul", "hls").GemmToMatMul
    wrapper = cleanup(require("qonnx.core.modelwrapper", "hls").ModelWrapper(proto))
    if len(model.input.attributes["shape"]) > 1:
        wrapper = wrapper.transform(last(make_input_channels_last=True))
    return cleanup(wrapper.transform(matmul())), notes


def _without_identity(graph: Any) -> None:
    """Take the last node off, an identity that only names the output."""
    source = graph.node.pop().input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = "output" if name == source else name


def _precision(model: IntegerModel, exponent: int) -> str:
    """Return hls4ml's type of the input, `fixed<bits, bits before the point>`."""
    reached = model.ranges[model.input.name]
    held = width(reached.low, reached.high)
    return f"{'fixed' if held.signed else 'ufixed'}<{held.bits},{held.bits + exponent}>"


def _convert(wrapper: Any, folder: Path, precision: str, target: tuple[str, float, str], name: str) -> None:
    """Write the project; what hls4ml prints is dropped.

    Raises:
        ProbqError: hls4ml refuses the graph.
    """
    hls4ml = require("hls4ml", "hls")
    part, clock, strategy = target
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = hls4ml.utils.config.config_from_onnx_model(
                wrapper, granularity="name", backend="Vitis", default_precision="fixed<32,16>"
            )
            config["Model"]["Strategy"] = strategy
            config["LayerName"][wrapper.graph.input[0].name]["Precision"] = {"result": precision}
            options = {"io_type": "io_stream", "backend": "Vitis", "part": part, "clock_period": clock}
            project = hls4ml.converters.convert_from_onnx_model(
                wrapper, output_dir=str(folder), project_name=name, hls_config=config, **options
            )
            project.write()
    except Exception as error:  # hls4ml raises bare exceptions
        raise ProbqError(f"hls4ml refuses the model ({error!s:.300}); export to C, or change that layer") from error


def _forget(folder: Path, path: Path) -> None:
    """Replace the temporary folder's name in hls4ml's own notes, and drop its archive of the project."""
    for file in folder.glob("*.yml"):
        file.write_text(file.read_text(encoding="utf-8").replace(str(folder), str(path)), encoding="utf-8")
    folder.with_name(folder.name + ".tar.gz").unlink(missing_ok=True)


def run(path: str | PathLike[str], integers: Any) -> np.ndarray:
    """Return what the project's C++ emulation computes, int64 `[batch, ...]`; g++ compiles it in a temporary folder.

    Args:
        path: the path of a folder that `write` wrote.
        integers: those of `IntegerModel.quantize_input`, the batch first.

    Raises:
        ProbqError: g++ is missing or refuses the project, or the integers do not fit it.
    """
    with opened(path) as compute:
        return compute(integers)


@contextlib.contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Callable[[Any], np.ndarray]]:
    """Give what `run` does as a function of the integers; the project is compiled once, for all of its calls.

    Raises:
        ProbqError: as `run`.
    """
    index = read_index(path, "hls")
    sizes = [math.prod(port(index, end, numbers)["shape"]) for end, numbers in PORTS.items()]
    name = checked_name(index.get("function", ""))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        try:
            shutil.copytree(path, folder)
        except OSError as error:
            raise ProbqError(f"cannot read the project {path}: {error!s:.200}; write it again") from error
        main = _MAIN.format(name=name, inputs=sizes[0], outputs=sizes[1])
        (folder / "main.cpp").write_text(main, encoding="ascii")
        _called(_build(folder, name), folder)
        yield lambda integers: _emulated(folder, index, np.asarray(integers))


def _emulated(folder: Path, index: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Return what the compiled program in the folder computes."""
    spec, shape = index["input"], index["output"]["shape"]
    if x.ndim == 0 or x.dtype.kind not in "iu" or list(x.shape[1:]) != spec["shape"]:
        raise ProbqError(f"expected integers of shape [batch, {spec['shape']}], not {x.dtype} of shape {x.shape}")
    if x.size and not spec["low"] <= x.min() <= x.max() <= spec["high"]:
        raise ProbqError(f"integers {x.min()} .. {x.max()} leave the range {spec['low']} .. {spec['high']}")
    fed = np.moveaxis(x, 1, -1) if x.ndim > 2 else x
    np.ascontiguousarray(fed * 2.0 ** spec["exponent"], np.float32).tofile(folder / "inputs.bin")
    _called([str(folder / "main")], folder)
    found = np.fromfile(folder / "outputs.bin", np.float32).astype(np.float64)
    found = results.integers(found * 2.0 ** -index["output"]["exponent"], "the HLS project")
    last = results.shaped(found, (len(x), *shape[1:], *shape[:1]), "the HLS project")
    return np.moveaxis(last, -1, 1) if shape else last


def _build(folder: Path, name: str) -> list[str]:
    """Return the compiler's command.

    Raises:
        ProbqError: there is no compiler.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise ProbqError("g++ is not on the PATH; install it to run the emulation of an HLS project")
    weights = f'-DWEIGHTS_DIR="{folder / "firmware" / "weights"}"'
    sources = ["main.cpp", f"firmware/{name}.cpp"]
    return [compiler, "-std=c++11", "-O1", "-w", "-Ifirmware/ap_types", weights, *sources, "-o", "main"]


def _called(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProbqError(f"{Path(command[0]).name} took more than {SECONDS} seconds; give it fewer inputs") from error
    if done.returncode:
        raise ProbqError(f"{Path(command[0]).name} failed on the HLS project: {done.stderr.strip()[:1000]}")
