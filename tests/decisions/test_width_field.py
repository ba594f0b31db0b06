"""Laws of widths by energies: against enumeration, and against chi-square tests of draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

import probq
from probq import Budget, Energy, Plan, ProbqError, Quantized, WidthField
from probq import cost as costs
from probq.codebooks import ladder, vector
from probq.priors.energies.energy import OF_CHOICES

RUNGS = (2, 4, 8)


def network(layers: int = 3) -> Quantized:
    torch.manual_seed(0)
    sizes = [6, 5, 7, 4, 6, 5, 3, 6, 5, 4, 3, 6, 5, 4][: layers + 1]
    parts = itertools.chain(*((nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)))
    plan = Plan(weight=ladder(*RUNGS), input=ladder(*RUNGS, signed=False), network_input=ladder(8))
    return probq.quantize(nn.Sequential(*parts), torch.rand(8, 6), plan)


def energy_for(q: Quantized, seed: int = 0, reach: int = 99, scale: float = 0.7) -> Energy:
    """A random energy, whose pairs lie at most `reach` places apart."""
    rng = np.random.default_rng(seed)
    names, widths = zip(*((n, z.ladder.bits) for n, z in q.named_sites() if len(z.ladder) > 1), strict=True)
    unary = tuple(np.append(scale * rng.normal(size=len(b) - 1), 0.0) for b in widths)
    ends = np.cumsum([0, *map(len, widths)])
    site = np.repeat(np.arange(len(names)), [len(b) for b in widths])
    matrix = scale * rng.normal(size=(ends[-1], ends[-1]))
    matrix += matrix.T
    distance = np.abs(site[:, None] - site)
    matrix[(distance == 0) | (distance > reach)] = 0
    return Energy(names, widths, unary, matrix)


def enumerated(q: Quantized, energy: Energy, limits: list[Budget]) -> dict[tuple[int, ...], float]:
    """Probabilities of all choices within the limits."""
    fixed = {n: z.ladder.bits[0] for n, z in q.named_quantizers() if len(z.ladder) == 1}
    weights = {}
    for bits in itertools.product(*energy.widths):
        widths = {**fixed, **dict(zip(energy.names, bits, strict=True))}
        if all(costs.total(q.layers, widths, b.cost) <= b.absolute(q.layers) for b in limits):
            weights[bits] = math.exp(-energy(widths))
    total = sum(weights.values())
    return {bits: weight / total for bits, weight in weights.items()}


def laws(probs: dict[tuple[int, ...], float], energy: Energy) -> list[np.ndarray]:
    return [
        np.array([sum(p for bits, p in probs.items() if bits[k] == b) for b in own])
        for k, own in enumerate(energy.widths)
    ]


def agree(counts: list[int], probs: list[float]) -> bool:
    """Whether counts of draws come from probabilities, those of less than 8 expected draws put together."""
    n, pairs = sum(counts), list(zip(counts, np.array(probs) / sum(probs), strict=True))
    assert not any(c for c, p in pairs if p == 0)
    common = [(c, n * p) for c, p in pairs if n * p > 8]
    rest = [(c, n * p) for c, p in pairs if n * p <= 8]
    if sum(p for _, p in rest) > 0:
        common.append((sum(c for c, _ in rest), sum(p for _, p in rest)))
    return bool(chisquare(*zip(*common, strict=True)).pvalue > 0.001)


@pytest.mark.parametrize(
    "limits",
    [[], [Budget(percent=2.0)], [Budget(percent=2.0), Budget(limit=50, cost=costs.largest_activation)]],
    ids=["free", "one", "two"],
)
def test_enumerated_laws_are_those_of_every_choice(limits: list[Budget]) -> None:
    q = network()
    energy = energy_for(q)
    field, expected = WidthField(q, energy, limits or None), enumerated(q, energy, limits)
    assert field.exact
    assert 1 < len(expected) <= 3**5
    for found, law in zip(field.marginals().values(), laws(expected, energy), strict=True):
        np.testing.assert_allclose(found, law, atol=1e-12)
    for bits, p in list(expected.items())[:20]:
        assert field.log_prob(dict(zip(energy.names, bits, strict=True))) == pytest.approx(math.log(p))
    drawn = [tuple(widths[n] for n in energy.names) for widths in field.draws(2000)]
    assert set(drawn) <= set(expected)
    assert agree([drawn.count(bits) for bits in expected], list(expected.values()))


def test_what_exceeds_the_limit_has_no_probability() -> None:
    q = network()
    energy = energy_for(q)
    widest = dict(zip(energy.names, (b[-1] for b in energy.widths), strict=True))
    assert WidthField(q, energy, Budget(percent=2.0)).log_prob(widest) == -math.inf


@pytest.mark.parametrize("reach", [1, 2])
def test_eliminated_laws_are_those_of_every_choice(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q = network()
    energy = energy_for(q, 1, reach)
    expected = enumerated(q, energy, [])
    monkeypatch.setattr("probq.decisions.width_field.MOST_ENUMERATED", 1)
    field = WidthField(q, energy)
    assert field.exact
    for found, law in zip(field.marginals().values(), laws(expected, energy), strict=True):
        np.testing.assert_allclose(found, law, atol=1e-12)
    first = next(iter(expected))
    assert field.log_prob(dict(zip(energy.names, first, strict=True))) == pytest.approx(math.log(expected[first]))
    drawn = [tuple(widths[n] for n in energy.names) for widths in field.draws(3000)]
    for k, law in enumerate(laws(expected, energy)):
        counts = [sum(bits[k] == b for bits in drawn) for b in energy.widths[k]]
        assert agree(counts, list(law))
    ends = [(bits[0], bits[1]) for bits in drawn]  # neighbours depend on one another
    pairs = {ab: sum(p for bits, p in expected.items() if bits[:2] == ab) for ab in itertools.product(RUNGS, RUNGS)}
    assert agree([ends.count(ab) for ab in pairs], list(pairs.values()))


def test_a_long_chain_is_exact_by_its_transfer_matrices() -> None:
    q = network(13)
    energy = energy_for(q, 2, reach=1)
    field = WidthField(q, energy)
    assert field.exact
    assert 3 ** len(energy.names) > 2**30
    forward = np.exp(-energy.unary[0])
    for one, other, row in zip(energy.names, energy.names[1:], energy.unary[1:], strict=False):
        forward = (forward @ np.exp(-energy.block(one, other))) * np.exp(-row)
    assert field.log_partition() == pytest.approx(math.log(forward.sum()))


def test_sampled_laws_come_near_and_keep_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    q = network()
    energy, limits = energy_for(q, 3, scale=0.4), [Budget(percent=2.0)]
    expected = enumerated(q, energy, limits)
    monkeypatch.setattr("probq.decisions.width_field.MOST_ENUMERATED", 1)
    field = WidthField(q, energy, limits)
    assert not field.exact
    drawn = [tuple(widths[n] for n in energy.names) for widths in field.draws(1000)]
    assert set(drawn) <= set(expected)
    for k, law in enumerate(laws(expected, energy)):
        counts = [sum(bits[k] == b for bits in drawn) for b in energy.widths[k]]
        assert agree(counts, list(law))
    for found, law in zip(field.marginals().values(), laws(expected, energy), strict=True):
        np.testing.assert_allclose(found, law, atol=0.13)
    with pytest.raises(ProbqError, match="too large"):
        field.log_partition()


def test_bad_input_is_told() -> None:
    q = network()
    with pytest.raises(ProbqError, match="another network or plan"):
        WidthField(network(2), energy_for(q))
    with pytest.raises(ProbqError, match="cannot be reached"):
        WidthField(q, energy_for(q), Budget(percent=0.001))
    with pytest.raises(ProbqError, match="takes an Energy"):
        WidthField(q, 3)  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match="n must be"):
        WidthField(q, energy_for(q)).draws(0)


def additive(q: Quantized, seed: int) -> Energy:
    """A random energy without pairs."""
    paired = energy_for(q, seed, scale=1.5)
    return Energy(paired.names, paired.widths, paired.unary)


@pytest.mark.parametrize(
    "limits",
    [[Budget(percent=1.0)], [Budget(percent=2.0), Budget(limit=50, cost=costs.largest_activation)]],
    ids=["one", "two"],
)
def test_draws_without_pairs_are_exact_within_the_budget(limits: list[Budget], monkeypatch: pytest.MonkeyPatch) -> None:
    q = network()
    energy = additive(q, 4)
    expected = enumerated(q, energy, limits)
    monkeypatch.setattr("probq.decisions.width_field.MOST_ENUMERATED", 1)
    field = WidthField(q, energy, limits)
    assert not field.exact
    drawn = [tuple(widths[n] for n in energy.names) for widths in field.draws(4000)]
    assert set(drawn) <= set(expected)
    assert agree([drawn.count(bits) for bits in expected], list(expected.values()))
    for bits, p in expected.items():
        assert field.log_prob(dict(zip(energy.names, bits, strict=True))) == pytest.approx(math.log(p), abs=1e-9)
    for found, law in zip(field.marginals().values(), laws(expected, energy), strict=True):
        np.testing.assert_allclose(found, law, atol=0.02)


def test_an_energy_that_moves_far_beyond_the_budget_is_drawn_within_it() -> None:
    q = network(13)
    names, widths = zip(*((n, z.ladder.bits) for n, z in q.named_sites() if len(z.ladder) > 1), strict=True)
    energy = Energy(names, widths, tuple(np.array([12.0, 6.0, 0.0]) for _ in names))
    budget = Budget(percent=1.0)
    field = WidthField(q, energy, budget)
    assert field.log_prob(dict(zip(names, (2,) * len(names), strict=True))) > -12 * len(names)
    for drawn in field.draws(50):
        assert costs.total(q.layers, {**{n: 8 for n, _ in q.named_quantizers()}, **drawn}) <= budget.absolute(q.layers)


def test_what_a_fit_measured_needs_no_number_of_examples() -> None:
    q = network()
    energy = additive(q, 5)
    measured = Energy(energy.names, energy.widths, energy.unary, label="measured losses", unit=OF_CHOICES)
    assert WidthField(q, measured).log_partition() == WidthField(q, energy).log_partition()
    with pytest.raises(ProbqError, match="nats for one example, and that of measured losses"):
        probq.fit(q, [(torch.rand(8, 6), torch.rand(8, 4))], prior=measured, epochs=1, progress=False)


def test_widths_of_vectors_are_no_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = ladder(vector(8, 2), 4)  # 1.5 and 4 bits
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    q = probq.quantize(net, torch.rand(64, 6), Plan(weights, ladder(2, 4, signed=False)))
    budget, data = Budget(percent=2.6), [(torch.rand(64, 6), torch.arange(64) % 4)]
    probq.decide(q, budget, data, progress=False)
    assert q.energy is not None
    assert 1.5 in q.energy.widths[0]
    expected = enumerated(q, q.energy, [budget])
    monkeypatch.setattr("probq.decisions.width_field.MOST_ENUMERATED", 1)
    field = WidthField(q, q.energy, budget)
    drawn = [tuple(widths[n] for n in q.energy.names) for widths in field.draws(2000)]
    assert set(drawn) <= set(expected)
    assert agree([drawn.count(bits) for bits in expected], list(expected.values()))
