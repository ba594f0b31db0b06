"""Energies by hand, their files, and every way in which one can be wrong."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probq import Energy, ProbqError

NAMES, WIDTHS = ("a.weight", "b.weight"), ((2, 4, 8), (4, 8))
UNARY = ([0.5, 0.125, 0.0], [0.25, 0.0])
PAIRS = np.zeros((5, 5))
PAIRS[0, 3] = PAIRS[3, 0] = -0.0625
PAIRS[1, 3] = PAIRS[3, 1] = 1.0


def energy(**changes: Any) -> Energy:
    given: dict[str, Any] = {"names": NAMES, "widths": WIDTHS, "unary": UNARY, "pairwise": PAIRS, "label": "by hand"}
    return Energy(**{**given, **changes})


def test_it_is_a_sum_over_quantizers_and_pairs() -> None:
    expected = {(2, 4): 0.6875, (2, 8): 0.5, (4, 4): 1.375, (4, 8): 0.125, (8, 4): 0.25, (8, 8): 0.0}
    for widths in itertools.product(*WIDTHS):
        assert energy()(dict(zip(NAMES, widths, strict=True))) == expected[widths]
    assert energy(pairwise=None)({"a.weight": np.array([[2], [2]]), "b.weight": 4, "other": 3}) == 0.75


def test_energies_are_added_and_scaled() -> None:
    both = energy() + 2 * energy(pairwise=None, label="plain")
    for widths in itertools.product(*WIDTHS):
        chosen = dict(zip(NAMES, widths, strict=True))
        assert both(chosen) == energy()(chosen) + 2 * energy(pairwise=None)(chosen)
    assert both.label == "by hand + plain"
    assert (energy(pairwise=None) + energy(pairwise=None)).pairwise is None
    with pytest.raises(ProbqError, match="different quantizers"):
        energy() + energy(widths=((2, 4, 16), (4, 8)))
    with pytest.raises(TypeError):
        energy() + 3  # type: ignore[operator]


def test_the_frame_has_a_column_for_each_width() -> None:
    frame = energy().to_frame()
    assert list(frame.columns) == [2, 4, 8]
    assert frame.loc["a.weight"].tolist() == [0.5, 0.125, 0.0]
    assert np.isnan(frame.loc["b.weight", 2])
    assert frame.attrs["label"] == "by hand"


@pytest.mark.parametrize("pairwise", [PAIRS, None])
@pytest.mark.parametrize("tensors", [("[3]", "[4]"), None])
def test_files_give_the_same_energy(pairwise: np.ndarray | None, tensors: Any, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    energy(pairwise=pairwise, tensors=tensors).save(path)
    loaded = Energy.load(path)
    assert loaded.tensors == tensors
    assert (loaded.names, loaded.widths, loaded.label) == (NAMES, WIDTHS, "by hand")
    assert all(map(np.array_equal, loaded.unary, UNARY))
    assert (loaded.pairwise is None) if pairwise is None else np.array_equal(loaded.pairwise, pairwise)
    content = path.read_bytes()
    energy(pairwise=pairwise, tensors=tensors).save(path)
    assert path.read_bytes() == content


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    energy().save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        place = int(rng.integers(len(whole)))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
        with pytest.raises(ProbqError):
            Energy.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProbqError, match="not an energy's file"):
        Energy.load(path)
    with pytest.raises(ProbqError, match="there is no file"):
        Energy.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a", "a")}, "each name once"),
        ({"unary": UNARY[:1]}, "one row of widths"),
        ({"unary": ([0.5, 0.1], [0.0, 0.0])}, "one energy for each"),
        ({"widths": ((4, 2, 8), (4, 8))}, "ascending"),
        ({"unary": ([np.nan, 0, 0], [0, 0])}, "not finite"),
        ({"pairwise": np.zeros((4, 4))}, "pairwise energies are finite"),
        ({"pairwise": np.triu(PAIRS)}, "symmetric"),
        ({"pairwise": PAIRS + np.eye(5)}, "rungs of one quantizer"),
        ({"tensors": ("[3]",)}, "a text for each name"),
        ({"tensors": (3, 4)}, "a text for each name"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        energy(**changes)


@pytest.mark.parametrize("widths", [{}, {"a.weight": 3, "b.weight": 4}, {"a.weight": np.array([2, 4]), "b.weight": 4}])
def test_widths_that_it_does_not_know_are_refused(widths: dict[str, Any]) -> None:
    with pytest.raises(ProbqError, match="needs one width"):
        energy()(widths)


def test_units_are_kept_and_do_not_mix(tmp_path: Path) -> None:
    nats = Energy(("a",), ((2, 4),), ([1.0, 0.0],))
    steps = Energy(("a",), ((2, 4),), ([1.0, 0.0],), unit="step")
    steps.save(tmp_path / "e")
    assert Energy.load(tmp_path / "e").unit == (2 * steps).unit == (steps + steps).unit == "step"
    with pytest.raises(ProbqError, match="in nats for one example and in step cannot be added"):
        nats + steps


def test_a_monotone_energy_never_likes_fewer_bits() -> None:
    energy = Energy(("a", "b"), ((1, 2, 4, 8), (2, 4)), ([0.3, 0.5, -0.2, 0.0], [0.1, 0.0]))
    found = energy.monotone()
    np.testing.assert_allclose(found.unary[0], [0.5 + 1e-6, 0.5, 1e-6, 0.0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.unary[1], energy.unary[1])
    assert all((np.diff(row) < 0).all() for row in found.unary)
    assert energy.negative == 1
