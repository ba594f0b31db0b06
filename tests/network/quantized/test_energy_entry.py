"""The energy in a posterior's file: kept as it was, absent where there is none, and told where it is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.codebooks import ladder
from probq.network.quantized.file_format import read, write
from probq.network.quantized.load import assemble


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def network() -> probq.Quantized:
    return probq.quantize(net(), torch.rand(8, 4), probq.Plan(weight=ladder(2, 8)))


def small_energy(pairs: bool = True) -> probq.Energy:
    values = np.zeros((4, 4))
    values[0, 2] = values[2, 0] = -0.125
    return probq.Energy(
        ("0.weight", "2.weight"),
        ((2, 8), (2, 8)),
        ([0.5, 0], [0.1, 0]),
        values if pairs else None,
        "by hand",
        tensors=("[5, 4]", "[3, 5]") if pairs else None,
    )


@pytest.mark.parametrize("pairs", [True, False])
def test_the_energy_is_kept(tmp_path: Path, pairs: bool) -> None:
    q, before = network(), tmp_path / "before"
    q.save(before)
    q.energy = small_energy(pairs)
    q.save(tmp_path / "q")
    loaded = probq.load(tmp_path / "q", net())
    assert vars(loaded.energy).keys() == vars(q.energy).keys()
    for one, other in zip(vars(loaded.energy).values(), vars(q.energy).values(), strict=True):
        assert str(one) == str(other)
    assert assemble(tmp_path / "q", *read(tmp_path / "q")).energy.label == "by hand"
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "q").read_bytes()
    assert "energy" not in read(before)[0]
    assert probq.load(before, net()).energy is None


ENERGIES: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "no object": (lambda m, _: m.update(energy=[1]), "'energy' of the manifest"),
    "other quantizers": (lambda m, _: m["energy"].update(names=["0.weight", "x"]), "of other quantizers"),
    "no names": (lambda m, _: m["energy"].pop("names"), "cannot be read"),
    "widths that fall": (lambda m, _: m["energy"].update(widths=[[8, 2], [2, 8]]), "ascending"),
    "widths that are no lists": (lambda m, _: m["energy"].update(widths=3), "cannot be read"),
    "no widths": (lambda m, _: m["energy"].update(widths=[], names=[]), "cannot be read"),
    "no label": (lambda m, _: m["energy"].update(label=3), "label and unit of an energy"),
    "a tensor too few": (lambda m, _: m["energy"].update(tensors=["[5, 4]"]), "one text of its tensors"),
    "too few numbers": (lambda _, t: t.update({"energy.unary": torch.zeros(3)}), "3 numbers for 4 widths"),
    "no numbers": (lambda _, t: t.pop("energy.unary"), "cannot be read"),
    "pairs that do not fit": (lambda _, t: t.update({"energy.pairwise": torch.ones(4, 4)}), "one quantizer"),
}


@pytest.mark.parametrize(("change", "message"), ENERGIES.values(), ids=ENERGIES.keys())
def test_a_wrong_energy_is_told(tmp_path: Path, change: Callable[[Any, Any], object], message: str) -> None:
    q = network()
    q.energy = small_energy()
    q.save(tmp_path / "q")
    manifest, tensors = read(tmp_path / "q")
    del manifest["sha256"]
    change(manifest, tensors)
    write(tmp_path / "q", manifest, tensors)
    with pytest.raises(probq.ProbqError, match=rf"not a valid posterior.*{message}"):
        probq.load(tmp_path / "q", net())
