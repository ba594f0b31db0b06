"""Posterior and prediction files of strangers: a clear error, the same result, or an honest other one."""

import copy
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import probq
from probq.cli.report import arrays
from probq.network.quantized.file_format import read, write
from probq.network.quantized.load import assemble

X = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
EXTREMES = (
    0, -1, 2, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), True, None, "", "\0", "x" * 999, [], {},
    [300_000_000], [-1], [[0, 0]], {"a": 1},
)  # fmt: skip
SECONDS = 5.0  # of any one file

Manifest = dict[str, Any]
Change = Callable[[Manifest, dict[str, Tensor]], object]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 2)
    ).eval()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, Tensor]]:
    q = probq.quantize(network(), X, probq.Plan(weight=probq.codebooks.ladder(0, 2, 4), gates="channel"))
    q.budget = probq.Budget(percent=50, cost=probq.cost.storage)
    path = tmp_path_factory.mktemp("q") / "q"
    q.at(q.mode()).save(path)
    with safe_open(path, "numpy") as opened:
        manifest = json.loads(opened.metadata()["probq"])
    return {k: v for k, v in manifest.items() if k not in ("sha256", "format", "version")}, load_file(path)


def outcome(path: Path) -> Any:
    """What a file gives in every use, or the error that refuses it."""
    start = time.perf_counter()
    try:
        bare = assemble(path, *read(path))
        probq.table(bare)
        q = probq.load(path, network())
        q.save(path.with_name("again"))
        return q(X), q.sample(1, seed=0)[0].widths, repr(q)
    except probq.ProbqError as error:
        return error
    finally:
        assert time.perf_counter() - start < SECONDS


def gates(manifest: Manifest, tensors: dict[str, Tensor]) -> None:
    manifest["quantizers"]["0.weight"] |= {"gates": [300_000_000], "shape": [300_000_000, 1, 3, 3]}


def filled(key: str, value: float, dtype: torch.dtype | None = None) -> Change:
    return lambda _, tensors: tensors.update({key: torch.full_like(tensors[key], value, dtype=dtype)})


def row(*costs: Any) -> Change:
    table = [["0", 2, 8, cost] for cost in costs]
    return lambda m, _: m.update(budget={"percent": 5, "limit": None, "cost": "mine", "table": table})


def layer(**fields: Any) -> Change:
    return lambda m, _: m["layers"][0].update(fields)


LOGITS, SCALE = "quantizers.0/weight.logits", "quantizers.0/weight.log2_scale"
CRAFTED: dict[str, tuple[Change, str]] = {
    "gates of 3e8 weights": (gates, r"logits is \[3, 1, 1, 1, 2\] in it, and \[300000000, 2\]"),
    "many gates, one missing": (lambda m, t: (gates(m, t), t.pop(LOGITS)), "logits', which is missing"),
    "NaN gates": (filled(LOGITS, float("nan")), "logits holds a number that is not finite"),
    "NaN weights": (filled("net.0.weight", float("nan")), "net.0.weight holds a number that is not finite"),
    "infinite weights": (filled("net.5.bias", float("inf")), "net.5.bias holds a number that is not finite"),
    "scale of 2**2000": (filled(SCALE, 2000.0), "exponent beyond"),
    "scale of a table": (filled("tables.2.output.log2_scale", -2000.0), "exponent beyond"),
    "scales that are whole numbers": (filled(SCALE, 1, torch.int64), "log2_scale is int64"),
    "decided rung off the ladder": (filled("quantizers.0/weight.fixed", 7), "a rung that is not on the ladder"),
    "decided rung of another type": (filled("quantizers.0/weight.fixed", 1, torch.float32), "rung that is not"),
    "cost of 10**400": (row(10**400), "whole number beyond"),
    "cost of infinity": (row(float("inf")), "not finite"),
    "budget of text": (lambda m, _: m.update(budget="5"), "'budget' of the manifest is '5'"),
    "MACs below 0": (layer(macs=-1), "layer 0 has a size below 0"),
    "MACs of half": (layer(macs=0.5), "'macs' of layer 0 is 0.5"),
    "layer of another kind": (layer(transposed=True), "'0' is not such a layer"),
    "layer without a weight": (layer(weight="9.weight"), "no layer has a quantizer '0.weight'"),
    "norm that is none": (layer(norm="4"), "'4' is not a batch normalisation"),
    "held module that is none": (lambda m, _: m.update(held=["9"]), "'9' is not a module"),
    "input of 1e12 numbers": (lambda m, _: m.update(signature=[[[10**6, 10**6], "float32"]]), "has the shape"),
    "input of no type": (lambda m, _: m.update(signature=[[[1, 5, 5], "os"]]), "not a valid posterior"),
    "levels": (lambda m, _: m["quantizers"]["0.weight"]["ladder"][2].update(count=2**40), "number of levels beyond"),
    "tied to nothing": (lambda m, _: m.update(tied={"net.9": 3}), "tied names something that is no name"),
    "weights of half precision": (filled("net.0.weight", 0.5, torch.bfloat16), "bfloat16 .* in it and float32"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CRAFTED.values(), ids=CRAFTED)
def test_crafted_files_are_refused(
    parts: tuple[Manifest, dict[str, Tensor]], change: Change, message: str, tmp_path: Path
) -> None:
    manifest, tensors = copy.deepcopy(parts)
    change(manifest, tensors)
    write(tmp_path / "q", manifest, tensors)
    found = outcome(tmp_path / "q")
    assert isinstance(found, probq.ProbqError), found
    with pytest.raises(probq.ProbqError, match=message):
        probq.load(tmp_path / "q", network())


def test_tables_of_decided_files_need_no_network(parts: tuple[Manifest, dict[str, Tensor]], tmp_path: Path) -> None:
    write(tmp_path / "q", *parts)
    bare, q = assemble(tmp_path / "q", *read(tmp_path / "q")), probq.load(tmp_path / "q", network())
    assert probq.table(bare).attrs == probq.table(q).attrs
    assert probq.table(bare).attrs["P(cost<=limit)"] == 1


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*here, key)
        yield from places(part, (*here, key))


def edited(manifest: Manifest, rng: np.random.Generator) -> Manifest:
    """One part replaced by an extreme value or by another part, dropped, or scaled; parts of lists less often."""
    changed = copy.deepcopy(manifest)
    every = list(places(changed))
    *above, last = every[rng.integers(len(every))]
    holder, other = changed, changed
    for key in above:
        holder = holder[key]
    for key in every[rng.integers(len(every))]:
        other = other[key]
    kind = rng.integers(4)
    if kind == 0:
        del holder[last]
    elif kind == 1 and type(holder[last]) in (int, float):
        holder[last] *= [-1, 2, 1000, 0.5][rng.integers(4)]
    else:
        holder[last] = copy.deepcopy(other) if kind == 2 else EXTREMES[rng.integers(len(EXTREMES))]
    return changed


def disturbed(tensors: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    """One tensor dropped, or of another type, shape or value."""
    changed, key = dict(tensors), list(tensors)[rng.integers(len(tensors))]
    old, kind = changed.pop(key), rng.integers(6)
    large = 3e38 if old.is_floating_point() else 1 if old.dtype == torch.bool else 2**62
    types = (torch.float64, torch.int32, torch.bfloat16, torch.bool, torch.uint8)
    if kind:
        shapes = (torch.zeros([*old.shape, 2]), torch.zeros(0), -old.double(), torch.full_like(old, large))
        changed[key] = [old.to(types[rng.integers(len(types))]), *shapes][kind - 1]
    return changed


@pytest.mark.filterwarnings("ignore::UserWarning")  # another version's, and those of lost budgets, are honest
def test_edited_files_are_refused_or_mean_something(parts: tuple[Manifest, dict[str, Tensor]], tmp_path: Path) -> None:
    rng, refused = np.random.default_rng(0), 0
    for number in range(300):
        manifest, tensors = parts
        if number % 3:
            manifest = edited(manifest, rng)
        else:
            tensors = disturbed(tensors, rng)
        write(tmp_path / "q", manifest, tensors)
        found = outcome(tmp_path / "q")
        if isinstance(found, probq.ProbqError):
            refused += 1
            assert 0 < len(str(found)) < 2000
    assert 150 < refused < 300


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    path, rng = tmp_path / "p.npz", np.random.default_rng(0)
    given = {"predictions": rng.random((20, 3)), "targets": np.arange(20) % 3}
    for save in (np.savez, np.savez_compressed):
        save(path, **given)
        intact = path.read_bytes()
        for number in range(150):
            start, end = sorted(rng.integers(0, len(intact), 2).tolist())
            path.write_bytes(
                [intact[:start] + rng.bytes(2) + intact[start + 2 :], intact[:start] + intact[end:], intact[:start]][
                    number % 3
                ]
            )
            found = loaded(path)
            assert isinstance(found, str) or all(map(np.array_equal, found, given.values()))


def loaded(path: Path) -> Any:
    try:
        return arrays(path)
    except probq.ProbqError as error:
        return str(error)


def test_predictions_larger_than_memory_are_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        for name in ("predictions", "targets"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert "does not hold predictions and targets" in loaded(tmp_path / "p.npz")
