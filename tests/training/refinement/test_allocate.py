"""Allocations against every choice of widths, and what is refused."""

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Budget, Energy, Plan, ProbqError, Quantized
from probq import cost as costs
from probq.codebooks import ladder
from probq.decisions.within_budget import with_widths

RUNGS = (1, 2, 4, 8)


def network(layers: int = 3, **plan: Any) -> Quantized:
    torch.manual_seed(0)
    sizes = [6, 5, 7, 4, 6, 5, 3][: layers + 1]
    parts = itertools.chain(*((nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)))
    options = {"weight": ladder(*RUNGS), "input": ladder(*RUNGS[1:], signed=False), **plan}
    return probq.quantize(nn.Sequential(*parts), torch.rand(8, 6), Plan(**options))


def energy_for(q: Quantized, seed: int, pairs: bool = True, scale: float = 0.5) -> Energy:
    """Random energies, negative ones and ties included."""
    rng = np.random.default_rng(seed)
    sites = [(n, z.ladder.bits) for n, z in q.named_sites() if len(z.ladder) > 1]
    unary = [np.append(np.sort(rng.integers(-1, 9, len(bits) - 1) / 8)[::-1], 0.0) for _, bits in sites]
    total = sum(len(bits) for _, bits in sites)
    pairwise = rng.normal(size=(total, total)) * scale
    pairwise += pairwise.T
    for part in np.split(np.arange(total), np.cumsum([len(b) for _, b in sites])[:-1]):
        pairwise[np.ix_(part, part)] = 0
    names, widths = zip(*sites, strict=True)
    return Energy(names, tuple(widths), tuple(unary), pairwise if pairs else None)


def brute_force(q: Quantized, energy: Energy, limits: list[Budget], forbidden: dict[str, Any]) -> float:
    """The least energy of all choices within the limits."""
    fixed = {n: z.ladder.bits[0] for n, z in q.named_quantizers() if len(z.ladder) == 1}
    best = np.inf
    for bits in itertools.product(*energy.widths):
        widths = {**fixed, **dict(zip(energy.names, bits, strict=True))}
        widths |= {name: widths[site] for name, site in q.sites.items()}
        if any(widths[name] in barred for name, barred in forbidden.items()):
            continue
        if all(costs.total(q.layers, widths, b.cost) <= b.absolute(q.layers) for b in limits):
            best = min(best, energy(widths))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("layers", [2, 3])
def test_it_is_the_best_of_all_choices(layers: int, pairs: bool, seed: int) -> None:
    q = network(layers)
    energy = energy_for(q, seed, pairs)
    limits = [Budget(percent=0.7 + 0.2 * seed)]
    forbidden = {}
    if seed % 2:
        limits.append(Budget(percent=12.0, cost=costs.storage))
        forbidden = {energy.names[0]: [4]}
    a = probq.allocate(q, energy, limits, forbidden=forbidden)
    assert energy(a.widths) == pytest.approx(brute_force(q, energy, limits, forbidden), abs=1e-9)
    assert a.gap == pytest.approx(0, abs=1e-6)
    assert all(a.cost(b.cost) <= b.absolute(q.layers) for b in limits)
    assert a.widths[energy.names[0]] not in forbidden.get(energy.names[0], [])


def test_ties_share_a_width() -> None:
    q = network(3, tie_weight="all")
    energy, limits = energy_for(q, 3), [Budget(percent=1.0)]
    a = probq.allocate(q, energy, limits)
    assert len({a.widths[n] for n in q.weight_names}) == 1
    assert energy(a.widths) == pytest.approx(brute_force(q, energy, limits, {}), abs=1e-9)


def test_all_gates_of_a_tensor_take_one_width() -> None:
    q = network(2, gates="channel")
    energy, limits = energy_for(q, 1), [Budget(percent=1.0)]
    a = probq.allocate(q, energy, limits)
    assert all(len(np.unique(a.widths[n])) == 1 for n in energy.names)
    assert a.cost() <= limits[0].absolute(q.layers)
    assert q.at(a).mode().cost() == a.cost()


def test_when_time_is_up_the_best_so_far_comes_with_what_could_be_proven() -> None:
    torch.manual_seed(0)
    parts = itertools.chain(*((nn.Linear(6, 6), nn.ReLU()) for _ in range(12)))
    q = probq.quantize(nn.Sequential(*parts), torch.rand(8, 6), Plan(weight=ladder(2, 4, 8), input=ladder(2, 4, 8)))
    energy, limit, start = energy_for(q, 0), Budget(percent=1.6), time.perf_counter()
    a = probq.allocate(q, energy, limit, seconds=1.0)
    assert time.perf_counter() - start < 20
    assert a.cost() <= limit.absolute(q.layers)
    assert a.gap >= 0
    longer = probq.allocate(q, energy, limit, seconds=6.0)
    assert energy(longer.widths) >= energy(a.widths) - a.gap - 1e-6  # nothing beats the bound


def test_an_assignment_can_be_decided_lowered_and_fitted() -> None:
    q, x, y = network(), torch.rand(32, 6), torch.arange(32) % 4
    a = probq.allocate(q, energy_for(q, 2, pairs=False), Budget(percent=1.0))
    fixed = q.at(a)
    probq.fit(fixed, [(x, y)], epochs=2, progress=False)
    assert probq.lower(fixed).metadata["bops"] == a.cost()


def test_energies_of_other_networks_and_impossible_demands_are_refused() -> None:
    q = network()
    energy = energy_for(q, 0)
    with pytest.raises(ProbqError, match="another network or plan"):
        probq.allocate(network(2), energy, Budget(percent=1))
    with pytest.raises(ProbqError, match="another network or plan"):
        probq.allocate(network(weight=ladder(2, 4, 8)), energy, Budget(percent=1))
    with pytest.raises(ProbqError, match=r"at least|cheapest|cannot be reached"):
        probq.allocate(q, energy, Budget(percent=0.01))
    with pytest.raises(ProbqError, match=r"every width of 0\.weight is forbidden"):
        probq.allocate(q, energy, forbidden={"0.weight": RUNGS})
    with pytest.raises(ProbqError, match="forbidden names 'nobody'"):
        probq.allocate(q, energy, forbidden={"nobody": [1]})
    for barred in (["4"], [3], "4", 3):
        with pytest.raises(ProbqError, match=r"whose widths in bits are \(1, 2, 4, 8\)"):
            probq.allocate(q, energy, forbidden={"0.weight": barred})  # type: ignore[dict-item]
    with pytest.raises(ProbqError, match="takes an Energy"):
        probq.allocate(q, 3, Budget(percent=1))  # type: ignore[arg-type]
    for seconds in (0, "1", None, True):
        with pytest.raises(ProbqError, match="seconds must be a positive number"):
            probq.allocate(q, energy, Budget(percent=1), seconds=seconds)  # type: ignore[arg-type]
    for barred in ("0.weight", ["0.weight"], 3):
        with pytest.raises(ProbqError, match="forbidden has widths in bits by name"):
            probq.allocate(q, energy, forbidden=barred)  # type: ignore[arg-type]


def test_swaps_are_accepted_by_measured_loss() -> None:
    q, x, y = network(2), torch.rand(32, 6), torch.arange(32) % 7
    q.likelihood = probq.likelihoods.categorical
    energy, limit = energy_for(q, 5, pairs=False), Budget(percent=1.0)
    plain = probq.allocate(q, energy, limit)
    options = {"validation": [(x, y)], "forbidden": {energy.names[0]: [4]}, "progress": False}
    swapped = probq.allocate(q, energy, limit, evaluations=1000, **options)
    measured = {}
    for bits in itertools.product(*energy.widths):
        widths = {**plain.widths, **dict(zip(energy.names, bits, strict=True))}
        if widths[energy.names[0]] != 4 and costs.total(q.layers, widths) <= limit.absolute(q.layers):
            own = q.at(with_widths(q, widths, None)).eval()
            measured[bits] = float(nn.functional.cross_entropy(own(x), y).detach())
    assert swapped.loss == pytest.approx(min(measured.values()), abs=1e-6)
    assert swapped.loss == pytest.approx(measured[tuple(swapped.widths[n] for n in energy.names)], abs=1e-6)
    least = brute_force(q, energy, [limit], {energy.names[0]: [4]})
    assert swapped.gap == pytest.approx(energy(swapped.widths) - least)
    few = probq.allocate(q, energy, limit, evaluations=1, **options)
    assert energy(few.widths) == pytest.approx(least)
