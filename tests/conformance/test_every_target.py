"""What every target must keep: the integers of every deployed network or a known refusal, proof, whole files.

A new target is one line of `TARGETS`; what it refuses, a line of `REFUSED`. A cell that changes, from refused to
supported or the other way round, fails: the table is then to be edited.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from deployed_models import NETWORKS, PROFILES, SMALL, STRUCTURES, SWITCH, arrays, lowered

import probq
from probq import IntegerModel
from probq.export import c, certify, hls, memory, onnx, qonnx, verify, verilog
from probq.integer.loops.body import every_node


class Target(NamedTuple):
    """A target.

    Attributes:
        name: as `verify` reports it, and what is special.
        write: of a model, to a path.
        runs: of what stands at a path, on integers.
        file: name of the artefact.
        needs: packages and programs.
        slow: whether it takes small networks only, and long for them.
        stamped: whether artefacts hold where and when they were written, as hls4ml's do.
    """

    name: str
    write: Callable[[IntegerModel, Path], Any]
    runs: tuple[Callable[[Path, np.ndarray], np.ndarray], ...]
    file: str
    needs: tuple[str, ...] = ()
    slow: bool = False
    stamped: bool = False

    def __str__(self) -> str:
        return self.name


ONNX_RUNS = (partial(onnx.run, optimize=False), onnx.run)
TARGETS = (
    Target("c", c.write, (partial(c.run, flags=("-O0", "-Werror")),), "m.h", ("gcc",)),
    Target("onnx", onnx.write, ONNX_RUNS, "m.onnx", ("onnxruntime",)),
    Target("onnx, packed", partial(onnx.write, packed=True), ONNX_RUNS, "m.onnx", ("onnxruntime",)),
    Target("qonnx, hls4ml", partial(qonnx.write, flavour="hls4ml"), (qonnx.run,), "m.onnx", ("qonnx",)),
    Target("qonnx, finn", partial(qonnx.write, flavour="finn"), (qonnx.run,), "m.onnx", ("qonnx",)),
    Target("memory", memory.write, (memory.run,), "m"),
    Target("hls", hls.write, (hls.run,), "m", ("hls4ml", "g++"), slow=True, stamped=True),
    Target("verilog", verilog.write, (verilog.run,), "m", ("da4ml", "iverilog"), slow=True),
)

SHIFTS = r"no power of two, and FPGA flows only shift"  # also of averages over other numbers than powers of two
TREES = r"no power of two, and adder trees only shift"
ADD, CONCAT, SUM_POOL, WHERE = (f"{op} has no memory form" for op in ("add", "concat", "sum_pool", "where"))
NORMALISE, NO_NORMALISE = "normalise has no memory form", "QONNX has no normalise"
TRANSPOSED = "transposed .* no memory form"
PRODUCT, PERMUTE, SUM = (f"{op} has no memory form" for op in ("product", "permute", "sum"))
NO_TABLE, NO_PAD, NO_REPEAT, NO_SLICE = (f"QONNX has no {op}" for op in ("table", "pad", "repeat", "slice"))
ONE = "one input and one output, and this model has"
ARGMAX, NO_ARGMAX = "argmax has no memory form", "QONNX has no argmax"
NO_MATMUL, NO_LOOP, LOOP = "QONNX has no matmul", "QONNX has no loop", "loop has no memory form"

# Why targets refuse, for shift and dyadic; "" where they compute the same integers. C and ONNX refuse none.
REFUSED = {
    "mobilenet v2": {"qonnx": (SHIFTS, SHIFTS), "memory": (ADD, ADD)},
    "resnet": {"qonnx": (SHIFTS, SHIFTS), "memory": (ADD, ADD)},
    "resnet, padded shortcut": {"qonnx": (NO_SLICE, NO_SLICE), "memory": (ADD, ADD)},
    "one-dimensional": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (SUM_POOL, SUM_POOL)},
    "autoencoder, upsampled": {"qonnx": (NO_REPEAT, NO_REPEAT), "memory": ("", "")},
    "autoencoder, transposed": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (TRANSPOSED, TRANSPOSED)},
    "split and joined": {"qonnx": (NO_PAD, NO_PAD), "memory": (ADD, ADD)},
    "functions": {"qonnx": (NO_TABLE, NO_TABLE), "memory": ("", "")},
    "pre-activation resnet": {"qonnx": (SHIFTS, SHIFTS), "memory": (ADD, ADD)},
    "densenet": {"qonnx": (SHIFTS, SHIFTS), "memory": (CONCAT, CONCAT)},
    "repvgg": {"qonnx": (SHIFTS, SHIFTS), "memory": (ADD, ADD)},
    "layer scale": {"qonnx": (SHIFTS, SHIFTS), "memory": (ADD, ADD)},
    "layer norms": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "group norms": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "channel attention": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (PERMUTE, PERMUTE)},
    "squeeze and excitation": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (SUM, SUM)},
    "gates": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (PRODUCT, PRODUCT)},
    "attention": {"qonnx": (NO_SLICE, NO_SLICE), "memory": (PERMUTE, PERMUTE)},
    "transformer": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "transformer of torch": {"qonnx": (NO_MATMUL, NO_MATMUL), "memory": (PERMUTE, PERMUTE)},
    "hourglass": {"qonnx": (NO_SLICE, NO_SLICE), "memory": (CONCAT, CONCAT)},
    "class token": {"qonnx": (NO_PAD, NO_PAD), "memory": (PERMUTE, PERMUTE)},
    "causal attention": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "encoder and decoder of torch": {"qonnx": (NO_MATMUL, NO_MATMUL), "memory": (PERMUTE, PERMUTE)},
    "lstm": {"qonnx": (NO_LOOP, NO_LOOP), "memory": (LOOP, LOOP)},
    "gru": {"qonnx": (NO_LOOP, NO_LOOP), "memory": (LOOP, LOOP)},
    "lstm, both ways": {"qonnx": (NO_LOOP, NO_LOOP), "memory": (LOOP, LOOP)},
    "attention u-net": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (TRANSPOSED, TRANSPOSED)},
    "mlp-mixer": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (PERMUTE, PERMUTE)},
    "gmlp": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "convnext": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (PERMUTE, PERMUTE)},
    "efficientnet": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (SUM_POOL, SUM_POOL)},
    "shufflenet": {"qonnx": (NO_SLICE, NO_SLICE), "memory": (CONCAT, CONCAT)},
    "shifted windows": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "pointnet": {"qonnx": (NO_MATMUL, NO_MATMUL), "memory": (PERMUTE, PERMUTE)},
    "video": {"qonnx": (SHIFTS, SHIFTS), "memory": (SUM_POOL, SUM_POOL)},
    "temporal convolutions": {"qonnx": (NO_SLICE, NO_SLICE), "memory": (ADD, ADD)},
    "conformer": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "llama": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "convolutional and recurrent": {"qonnx": (NO_LOOP, NO_LOOP), "memory": (PERMUTE, PERMUTE)},
    "normalisations spelled out": {"qonnx": (NO_NORMALISE, NO_NORMALISE), "memory": (NORMALISE, NORMALISE)},
    "experts, one chosen": {"qonnx": (NO_TABLE, NO_TABLE), "memory": (WHERE, WHERE)},
    **{name: {"qonnx": (ONE, ONE), "memory": (ONE, ONE)} for name in STRUCTURES},
    "plain": {"qonnx": ("", SHIFTS), "memory": ("", "")},
    "perceptron": {"qonnx": ("", SHIFTS), "memory": ("", ""), "hls": ("", SHIFTS), "verilog": ("", TREES)},
    SWITCH: {"qonnx": (NO_ARGMAX, NO_ARGMAX), "memory": (ARGMAX, ARGMAX)},
}


every_cell = pytest.mark.parametrize("profile", PROFILES)
every_network = pytest.mark.parametrize("network", NETWORKS)


def test_the_table_has_every_network():
    assert list(REFUSED) == list(NETWORKS)


def usable(target: Target) -> None:
    """Skip where what a target needs is missing."""
    missing = [n for n in target.needs if importlib.util.find_spec(n) is None and shutil.which(n) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def content(path: Path) -> dict[str, bytes]:
    """The bytes of every file of an artefact."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


@pytest.mark.parametrize("target", [target for target in TARGETS if not target.slow], ids=str)
@every_cell
@every_network
def test_the_same_integers_or_the_known_refusal(network: str, profile: str, target: Target, tmp_path: Path) -> None:
    check(network, profile, target, tmp_path / target.file)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of hls4ml and qonnx
@pytest.mark.parametrize("target", [target for target in TARGETS if target.slow], ids=str)
@every_cell
def test_the_same_integers_of_a_small_network(profile: str, target: Target, tmp_path: Path) -> None:
    check(SMALL, profile, target, tmp_path / target.file)


def test_profiles_differ_in_their_multipliers() -> None:
    for network in NETWORKS:
        for profile in PROFILES:
            model, _, expected = lowered(network, profile)
            nodes = [node for node in every_node(model.nodes) if node.op in ("requantize", "multiply")]
            weights = {m for node in nodes for m in node.tensors["multiplier"].flat}
            assert profile == "shift" or any(m & (m - 1) for m in weights)
            assert max(len(np.unique(each)) for each in expected) > 2


def check(network: str, profile: str, target: Target, path: Path) -> None:
    """0 integers differ where the table says so; elsewhere the refusal that it says, and nothing written."""
    usable(target)
    model, x, expected = lowered(network, profile)
    reason = REFUSED[network].get(target.name.split(",")[0], ("", ""))[PROFILES.index(profile)]
    if reason:
        with pytest.raises(probq.ProbqError, match=reason if reason == ONE else rf"node .*{reason}"):
            target.write(model, path)
        assert not path.exists()
        return
    target.write(model, path)
    for run in target.runs:
        for found, own in zip(arrays(run(path, x)), expected, strict=True):
            np.testing.assert_array_equal(found, own)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@every_target
def test_artefacts_are_recognised_proved_and_certified(target: Target, tmp_path: Path) -> None:
    usable(target)
    model, path = lowered(SMALL, "shift")[0], tmp_path / target.file
    target.write(model, path)
    x = np.random.default_rng(0).normal(size=(20, 5))
    report = verify(model, path, x)
    assert (report.target, report.compared, report.differing) == (target.name.split(",")[0], 20, 0)
    assert report
    assert certify(model, path, report) == path.with_name(path.name + ".json")
    layer = model.nodes[1]
    other = replace(layer, tensors={**layer.tensors, "weight": -layer.tensors["weight"]})
    wrong = IntegerModel([model.nodes[0], other, *model.nodes[2:]], model.output, model.output_scale)
    assert verify(wrong, path, x).differing == (wrong(x) != model(x)).any(1).sum() > 0


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("target", [target for target in TARGETS if not target.stamped], ids=str)
def test_the_same_model_gives_the_same_bytes(target: Target, tmp_path: Path) -> None:
    """Written twice, saved and loaded before, and with the keys of all nodes in another order."""
    usable(target)
    model = lowered(SMALL, "shift")[0]
    model.save(tmp_path / "model")
    turned = [
        replace(n, attributes=dict(reversed(n.attributes.items())), tensors=dict(reversed(n.tensors.items())))
        for n in model.nodes
    ]
    other = IntegerModel(turned, model.output, model.output_scale, model.metadata)
    found = []
    for k, same in enumerate((model, model, IntegerModel.load(tmp_path / "model"), other)):
        path = tmp_path / str(k) / target.file
        path.parent.mkdir()
        target.write(same, path)
        found.append(content(path))
    assert found[1:] == found[:1] * 3


@every_target
def test_what_cannot_be_written_leaves_nothing(target: Target, tmp_path: Path) -> None:
    usable(target)
    model = lowered(SMALL, "shift")[0]
    (tmp_path / "file").write_text("file")
    for folder in ("nowhere", "file", "file/below"):
        with pytest.raises(probq.ProbqError, match=f"cannot write .*{folder}"):
            target.write(model, tmp_path / folder / target.file)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["pyro"] = None
from importlib import import_module
import numpy as np
from probq import IntegerModel
from probq.export import verify
model = IntegerModel.load(sys.argv[1])
import_module("probq.export." + sys.argv[2]).write(model, sys.argv[3])
assert verify(model, sys.argv[3], np.ones((2, 5)))
"""


@pytest.mark.parametrize(
    "target", [target for target in TARGETS if not target.slow and "," not in target.name], ids=str
)
def test_a_target_needs_no_torch(target: Target, tmp_path: Path) -> None:
    usable(target)
    lowered(SMALL, "shift")[0].save(tmp_path / "model")
    arguments = [str(tmp_path / "model"), target.name, str(tmp_path / target.file)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
