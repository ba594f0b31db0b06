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


def test_energies_are_subtracted_and_divided() -> None:
    one, other = energy(), energy(pairwise=None, unary=([0.25, 0.5, 0.0], [1.0, 0.0]), label="a + b")
    np.testing.assert_array_equal((one - other).unary[0], [0.25, -0.375, 0.0])
    np.testing.assert_array_equal((one - other).unary[1], [-0.75, 0.0])
    np.testing.assert_array_equal((other - one).pairwise, -PAIRS)
    assert ((one - other).label, (other - one).label) == ("by hand - (a + b)", "a + b - by hand")
    assert not any(row.any() for row in (one - one).unary)
    assert (one - one).pairwise is None
    np.testing.assert_array_equal((one / 3).unary[0], [0.5 / 3, 0.125 / 3, 0.0])
    np.testing.assert_array_equal((one / np.float32(2)).pairwise, PAIRS / 2)
    np.testing.assert_array_equal((np.float32(2) * one).unary[1], [0.5, 0.0])
    assert (np.int64(2) * one)({"a.weight": 2, "b.weight": 4}) == 2 * 0.6875
    assert not np.signbit((-one).unary[0][-1])
    with pytest.raises(ProbqError, match="divided by 0"):
        one / 0
    with pytest.raises(ProbqError, match="in nats for one example and in step"):
        one - energy(unit="step")
    for wrong in (lambda: one / one, lambda: 1 / one, lambda: one - 1, lambda: one * "2"):  # type: ignore[operator]
        with pytest.raises(TypeError):
            wrong()


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
    with pytest.raises(ProbqError, match="not a safetensors file"):
        Energy.load(path)
    with pytest.raises(ProbqError, match="there is no file"):
        Energy.load(tmp_path / "none")
    with pytest.raises(ProbqError, match=r"is a folder; give the path of a file that Energy.save wrote"):
        Energy.load(tmp_path)
    for nothing in (None, 3):
        with pytest.raises(ProbqError, match=r"a path is a string or a pathlib.Path"):
            Energy.load(nothing)  # type: ignore[arg-type]


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
        ({"tensors": ("[3]",)}, "one text of its tensors for each name"),
        ({"tensors": (3, 4)}, "are texts, not"),
        ({"tensors": 3}, "a sequence of texts"),
        ({"names": "ab"}, "a sequence of texts, not 'ab'"),
        ({"names": ("a", 3)}, "are texts, not"),
        ({"label": 3}, "label and unit of an energy are texts"),
        ({"widths": ((-2, 4, 8), (4, 8))}, "numbers of 0 or more"),
        ({"widths": ((float("nan"), 4, 8), (4, 8))}, "numbers of 0 or more"),
        ({"widths": (("2", 4, 8), (4, 8))}, "numbers of 0 or more"),
        ({"widths": ((True, 4, 8), (4, 8))}, "numbers of 0 or more"),
        ({"widths": ((2, 2, 8), (4, 8))}, "ascending"),
        ({"widths": (8, (4, 8))}, "ascending widths"),
        ({"widths": None}, "a row for each name"),
        ({"unary": (["x", 0, 0], [0, 0])}, "energies of a.weight are numbers"),
        ({"unary": "ab"}, "a row for each name"),
        ({"pairwise": "x"}, "pairwise energies are numbers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        energy(**changes)


@pytest.mark.parametrize("width", [3, np.array([2, 4]), 2.5, "2", None])
def test_widths_that_it_does_not_know_are_refused(width: Any) -> None:
    with pytest.raises(ProbqError, match=r"needs one width of \(2, 4, 8\) for a.weight"):
        energy()({"a.weight": width, "b.weight": 4})
    with pytest.raises(ProbqError, match="needs one width of"):
        energy()({"b.weight": 4})
    for wrong in (None, 3, [("a.weight", 4)]):
        with pytest.raises(ProbqError, match=r"such as Assignment.widths"):
            energy()(wrong)  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match=r"does not know 'c'; it knows a.weight, b.weight"):
        energy().block("a.weight", "c")


def test_pruned_and_numpys_widths_are_widths() -> None:
    own = energy(names=["a", "b"], widths=np.array([[0, 8], [1, 2]]), unary=np.eye(2), pairwise=None)
    assert own.widths == ((0, 8), (1, 2))
    assert own({"a": 0, "b": np.int64(2)}) == 2.0


def test_units_are_kept_and_do_not_mix(tmp_path: Path) -> None:
    nats = Energy(("a",), ((2, 4),), ([1.0, 0.0],))
    steps = Energy(("a",), ((2, 4),), ([1.0, 0.0],), unit="step")
    steps.save(tmp_path / "e")
    assert Energy.load(tmp_path / "e").unit == (2 * steps).unit == (steps + steps).unit == "step"
    with pytest.raises(ProbqError, match="in nats for one example and in step cannot be added"):
        nats + steps


def test_units_become_nats_by_what_they_are_worth() -> None:
    steps = energy(unit="step")
    nats = steps.to_nats(0.25)
    assert (nats.unit, nats.label) == (energy().unit, "by hand")
    for widths in itertools.product(*WIDTHS):
        chosen = dict(zip(NAMES, widths, strict=True))
        assert nats(chosen) == 0.25 * steps(chosen)
    for wrong in (0, -1.0, np.inf, np.nan, "1", None):
        with pytest.raises(ProbqError, match="how many nats one step is worth, above 0"):
            steps.to_nats(wrong)  # type: ignore[arg-type]


def test_a_monotone_energy_never_likes_fewer_bits() -> None:
    energy = Energy(("a", "b"), ((1, 2, 4, 8), (2, 4)), ([0.3, 0.5, -0.2, 0.0], [0.1, 0.0]))
    found = energy.monotone()
    np.testing.assert_allclose(found.unary[0], [0.5 + 1e-6, 0.5, 1e-6, 0.0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.unary[1], energy.unary[1])
    assert all((np.diff(row) < 0).all() for row in found.unary)
    assert energy.negative == 1
