"""Ranges by four methods, against definitions written out in numpy over all exponents."""

import math

import numpy as np
import pytest
import torch

from probq.codebooks import Grid, uniform
from probq.codebooks.powers_of_two import powers_of_two
from probq.codebooks.rounding.ranges import divergence, histogram, log2_range

EXPONENTS = range(-20, 21)
BOOKS = (uniform(1), uniform(2), uniform(4), uniform(8), uniform(2, signed=False), uniform(4, signed=False))


def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=3000),
        0.03 * rng.normal(size=500) ** 3,
        np.maximum(rng.normal(size=2000), 0),
        5 * rng.exponential(size=1000),
    ]


def rounded(x: np.ndarray, levels: np.ndarray, scale: float) -> np.ndarray:
    return scale * levels[np.abs(x[:, None] / scale - levels).argmin(1)]


@pytest.mark.parametrize("book", [*BOOKS, powers_of_two(3)])
@pytest.mark.parametrize("which", range(4))
def test_ranges_are_the_best_of_all_powers_of_two(book, which: int) -> None:
    """Each method's rule, tried at every exponent from -20 to 20."""
    x, levels = samples()[which].astype(np.float32).astype(float), book.levels().double().numpy()
    given = book if isinstance(book, Grid) else book.levels()

    def found(method: str, percentile: float = 99.0) -> int:
        return log2_range(torch.tensor(x, dtype=torch.float32), given, method, percentile)

    def least(low: float, high: float) -> int:
        inside = [
            k for k in EXPONENTS
            if (levels[-1] <= 0 or high <= 2.0**k * levels[-1]) and (levels[0] >= 0 or low >= 2.0**k * levels[0])
        ]  # fmt: skip
        return min(inside)

    assert found("minmax") == least(x.min(), x.max())
    assert found("percentile") == least(*np.percentile(x, [1, 99]))
    assert found("percentile", 100) == found("minmax")
    errors = [((rounded(x, levels, 2.0**k) - x) ** 2).sum() for k in EXPONENTS]
    assert found("mse") == EXPONENTS[int(np.argmin(errors))]


@pytest.mark.parametrize("book", BOOKS)
def test_the_divergence_is_that_of_the_definition(book) -> None:
    """One bin after the other: P with what is clipped at its ends, Q even over what is filled in each level's cell."""
    levels = book.levels().double().numpy()
    for x in samples():
        counts, centres = histogram(torch.tensor(x))
        assert counts.sum() == (x != 0).sum()
        assert len(counts) == len(centres) == 2048
        for scale in (2.0, 0.25, 1 / 64):
            inside = [b for b in range(2048) if scale * levels[0] <= centres[b] <= scale * levels[-1]]
            p, q = dict.fromkeys(inside, 0.0), dict.fromkeys(inside, 0.0)
            cells: dict[int, list[int]] = {}
            for b in range(2048):
                p[min(max(b, inside[0]), inside[-1])] += counts[b]
            for b in inside:
                if p[b]:
                    cells.setdefault(int(np.abs(centres[b] / scale - levels).argmin()), []).append(b)
            for bins in cells.values():
                q.update(dict.fromkeys(bins, sum(counts[b] for b in bins) / len(bins)))
            expected = math.inf
            if sum(q.values()) and all(q[b] for b in inside if p[b]):
                all_p, all_q = sum(p.values()), sum(q.values())
                expected = sum(p[b] / all_p * math.log(p[b] / all_p / (q[b] / all_q)) for b in inside if p[b])
            assert divergence(counts, centres, torch.tensor(levels), scale) == pytest.approx(expected, abs=1e-12)


def test_divergences_choose_the_least_one() -> None:
    x = torch.tensor(samples()[0])
    counts, centres = histogram(x)
    table = uniform(4).levels().double()
    found = log2_range(x, uniform(4), "kl", 0)
    others = [divergence(counts, centres, table, 2.0**k) for k in range(-8, 3)]
    assert divergence(counts, centres, table, 2.0**found) == min(others)


def test_what_has_no_range_has_that_of_one() -> None:
    for method in ("minmax", "percentile", "mse", "kl"):
        assert log2_range(torch.zeros(5), uniform(2), method, 99) == 0
        assert log2_range(-torch.ones(5), uniform(2, signed=False), method, 99) == 0
        assert log2_range(torch.ones(5), Grid(0, 1, 1), method, 99) == 0
