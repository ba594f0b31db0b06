"""Every deployed network, in both profiles, on every target that runs here: 0 integers differ, or the refusal is known.

A cell that changes, from refused to supported or the other way round, fails: the table is then to be edited.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from c_programs import differing
from torch import nn

import probq
from probq import IntegerModel
from probq.codebooks import ladder
from probq.export import memory, onnx, qonnx
from probq.testing import deployed

PROFILES = ("shift", "dyadic")
SHIFTS = r"no power of two, and FPGA flows only shift"  # also of averages over other numbers than powers of two
ADD, SUM_POOL, TRANSPOSED = "add has no memory form", "sum_pool has no memory form", "transposed .* no memory form"
NO_TABLE, NO_PAD, NO_REPEAT = (f"QONNX has no {op}" for op in ("table", "pad", "repeat"))

# Why QONNX (in both flavours) and memory files refuse, for shift and dyadic; "" where they compute the same integers.
# C and ONNX refuse none.
REFUSED = {
    "mobilenet v2": {"qonnx": (SHIFTS, SHIFTS), "memory": (ADD, ADD)},
    "resnet": {"qonnx": (NO_PAD, NO_PAD), "memory": (ADD, ADD)},
    "resnet, padded shortcut": {"qonnx": (NO_PAD, NO_PAD), "memory": (ADD, ADD)},
    "one-dimensional": {"qonnx": (NO_TABLE, SHIFTS), "memory": (SUM_POOL, SUM_POOL)},
    "autoencoder, upsampled": {"qonnx": (NO_REPEAT, SHIFTS), "memory": ("", "")},
    "autoencoder, transposed": {"qonnx": (NO_TABLE, SHIFTS), "memory": (TRANSPOSED, TRANSPOSED)},
    "split and joined": {"qonnx": (NO_PAD, NO_PAD), "memory": (ADD, ADD)},
    "functions": {"qonnx": (NO_TABLE, SHIFTS), "memory": ("", "")},
    "plain": {"qonnx": ("", SHIFTS), "memory": ("", "")},
}


def plain() -> nn.Sequential:
    """What every target takes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def networks() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    yield from deployed()
    torch.manual_seed(0)
    yield "plain", plain().eval(), torch.randn(16, 1, 12, 12)


NETWORKS = {name: (net, example) for name, net, example in networks()}


@cache
def lowered(network: str, profile: str) -> tuple[IntegerModel, np.ndarray, np.ndarray]:
    """A random decision's integer model, integers far beyond the example, and its output."""
    net, example = NETWORKS[network]
    plan = probq.Plan(weight=ladder(1, 2, 4), input=ladder(2, 4), activation=5, profile=profile)
    q = probq.quantize(net, example, plan=plan)
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    (a,) = q.sample(1, seed=1)
    model = probq.lower(q, a)
    x = model.quantize_input(torch.cat([example, 3 * example]).double())
    return model, x, model.run(x)


every_cell = pytest.mark.parametrize("profile", PROFILES)
every_network = pytest.mark.parametrize("network", NETWORKS)


def test_the_table_has_every_network():
    assert list(REFUSED) == list(NETWORKS)


def test_profiles_differ_in_their_multipliers():
    for network in NETWORKS:
        for profile in PROFILES:
            model, _, expected = lowered(network, profile)
            weights = {m for node in model.nodes if node.op == "requantize" for m in node.tensors["multiplier"].flat}
            assert profile == "shift" or any(m & (m - 1) for m in weights)
            assert len(np.unique(expected)) > 2


def test_c(tmp_path):
    """All of them in one program."""
    cells = {(network, profile): lowered(network, profile) for network in NETWORKS for profile in PROFILES}
    models = {f"m{k}": (model, x) for k, (model, x, _) in enumerate(cells.values())}
    found = differing(models, tmp_path, ("-O1", "-Werror"))
    assert dict(zip(cells, found.values(), strict=True)) == dict.fromkeys(cells, 0)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@every_cell
@every_network
def test_onnx(network, profile, packed, tmp_path):
    pytest.importorskip("onnxruntime")
    model, x, expected = lowered(network, profile)
    onnx.write(model, tmp_path / "m.onnx", packed)
    for optimize in (False, True):
        np.testing.assert_array_equal(onnx.run(tmp_path / "m.onnx", x, optimize), expected)


@pytest.mark.parametrize("flavour", ["hls4ml", "finn"])
@every_cell
@every_network
def test_qonnx(network, profile, flavour, tmp_path):
    pytest.importorskip("qonnx")
    check(network, profile, "qonnx", tmp_path / "m.onnx", flavour)


@every_cell
@every_network
def test_memory(network, profile, tmp_path):
    check(network, profile, "memory", tmp_path / "m")


def check(network: str, profile: str, target: str, path: Path, *options: str) -> None:
    """0 integers differ where the table says so; elsewhere the refusal that it says, and nothing written."""
    module = {"qonnx": qonnx, "memory": memory}[target]
    model, x, expected = lowered(network, profile)
    reason = REFUSED[network][target][PROFILES.index(profile)]
    if reason:
        with pytest.raises(probq.ProbqError, match=rf"node .*{reason}"):
            module.write(model, path, *options)
        assert not path.exists()
        return
    module.write(model, path, *options)
    np.testing.assert_array_equal(module.run(path, x), expected)
