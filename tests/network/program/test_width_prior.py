"""Energies as priors, against enumeration of all widths and the fixed point of mean-field inference."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from torch import nn

import probq
from probq import Energy, Plan, ProbqError, Quantized
from probq.codebooks import ladder
from probq.network.program.width_prior import pair_energy, set_width_prior
from probq.training.svi.objective import Objective

X, Y = torch.rand(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


def network(**plan: object) -> Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    options = {"weight": ladder(2, 4, 8), "input": ladder(2, 8, signed=False), "network_input": ladder(8), **plan}
    return probq.quantize(net, X, Plan(**options))  # type: ignore[arg-type]


def energy_for(q: Quantized, seed: int = 0, pairs: bool = True, scale: float = 1.0) -> Energy:
    """A random energy with pairs, its names in another order than the network's."""
    rng = np.random.default_rng(seed)
    sites = [(n, z.ladder.bits) for n, z in q.named_sites() if len(z.ladder) > 1]
    names, widths = zip(*sites, strict=True)
    unary = tuple(np.append(scale * rng.normal(size=len(bits) - 1), 0.0) for bits in widths)
    ends = np.cumsum([0, *map(len, widths)])
    matrix = scale * rng.normal(size=(ends[-1], ends[-1]))
    matrix += matrix.T
    for a, b in itertools.pairwise(ends):
        matrix[a:b, a:b] = 0
    return Energy(names, widths, unary, matrix if pairs else None)


def log_prior(q: Quantized, widths: dict[str, int]) -> float:
    """The log-density of given widths under the model alone, codes and targets left out."""
    onehots = {n: torch.eye(len(z.ladder))[z.ladder.bits.index(widths[n])] for n, z in q.named_sites() if z.free}
    with poutine.trace() as tracer, poutine.condition(data={f"{n}.width": o for n, o in onehots.items()}):
        q.model(X)
    sites = {n: s for n, s in tracer.trace.nodes.items() if n.endswith(".width") or n == "width.pairs"}
    tracer.trace.compute_log_prob(lambda name, _: name in sites)
    return float(sum(site["log_prob_sum"] for site in sites.values()))


@pytest.mark.parametrize("pairs", [False, True])
def test_the_models_log_density_falls_by_the_energy(pairs: bool) -> None:
    q = network()
    q.temperature = 1.0
    energy = energy_for(q, pairs=pairs)
    set_width_prior(q, energy)
    found, expected = [], []
    for bits in itertools.product(*energy.widths):
        widths = dict(zip(energy.names, bits, strict=True))
        found.append(log_prior(q, widths))
        expected.append(-energy(widths))
    np.testing.assert_allclose(np.array(found) - found[0], np.array(expected) - expected[0], atol=1e-5)


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_the_expected_energy_is_that_of_all_choices(gates: str) -> None:
    q = network(gates=gates)
    energy = energy_for(q, 1)
    set_width_prior(q, energy)
    with torch.no_grad():
        for _, quantizer in q.named_sites():
            quantizer.logits.normal_()
    probs = {n: z.probs().detach().double().reshape(-1, len(z.ladder)).mean(0).numpy() for n, z in q.named_sites()}
    expected = 0.0
    for rungs in itertools.product(*(range(len(bits)) for bits in energy.widths)):
        chance = np.prod([probs[n][k] for n, k in zip(energy.names, rungs, strict=True)])
        widths = {n: bits[k] for n, bits, k in zip(energy.names, energy.widths, rungs, strict=True)}
        expected += chance * (energy(widths) - Energy(energy.names, energy.widths, energy.unary)(widths))
    assert float(q.expected_pair_energy().detach()) == pytest.approx(expected, abs=1e-6)


def test_the_names_may_stand_in_another_order() -> None:
    q = network()
    energy = energy_for(q, 2)
    order = [2, 0, 1][: len(energy.names)]
    starts = np.cumsum([0, *map(len, energy.widths)])
    places = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in order])
    assert energy.pairwise is not None
    turned = Energy(
        tuple(energy.names[k] for k in order),
        tuple(energy.widths[k] for k in order),
        tuple(energy.unary[k] for k in order),
        energy.pairwise[np.ix_(places, places)],
    )
    set_width_prior(q, turned)
    widths = {"0.weight": 4, "2.weight": 2, "2.input": 2}
    onehots = {n: torch.eye(len(z.ladder))[z.ladder.bits.index(widths.get(n, 8))] for n, z in q.named_sites()}
    assert float(pair_energy(q, onehots)) == pytest.approx(
        energy(widths) - Energy(energy.names, energy.widths, energy.unary)(widths), abs=1e-12
    )


def mean_field(energy: Energy) -> list[np.ndarray]:
    """The independent laws nearest to `exp(-energy)`, by coordinate ascent from uniform ones."""
    laws = [np.full(len(bits), 1 / len(bits)) for bits in energy.widths]
    for _ in range(500):
        for i, one in enumerate(energy.names):
            field = energy.unary[i] + sum(
                energy.block(one, other) @ laws[j] for j, other in enumerate(energy.names) if j != i
            )
            weights = np.exp(-(field - field.min()))
            laws[i] = weights / weights.sum()
    return laws


@pytest.mark.parametrize("draws", [1, 6])
def test_the_bound_without_data_is_least_at_the_mean_field_of_the_energy(draws: int) -> None:
    q = network(codes=1)
    energy = energy_for(q, 3, scale=0.4)
    set_width_prior(q, energy)
    q.temperature, q.likelihood = 1.0, lambda output: torch.distributions.Normal(0 * output, 1.0)
    q.train()
    objective = Objective(q, len(X), draws)
    gates = [z.logits for _, z in q.named_sites() if z.free]
    optimizer = torch.optim.Adam(gates, 0.1)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 400)
    torch.manual_seed(1)
    for _ in range(400):
        optimizer.zero_grad()
        (len(X) * objective(X, torch.zeros(16, 2)).value).backward()
        optimizer.step()
        rates.step()
    for name, law in zip(energy.names, mean_field(energy), strict=True):
        np.testing.assert_allclose(q.quantizer(name).probs().detach(), law, atol=0.005 if draws == 1 else 0.05)


def test_a_plan_can_have_an_energy_for_its_prior() -> None:
    energy = 40 * energy_for(network())
    q = network(width_prior=energy)
    reference = network()
    set_width_prior(reference, energy)
    assert q.pairs is not None
    assert torch.equal(q.pairs, reference.pairs)
    for (_, one), (_, other) in zip(q.named_sites(), reference.named_sites(), strict=True):
        assert torch.equal(one.prior().log_probs, other.prior().log_probs)


def test_a_saved_posterior_keeps_its_prior(tmp_path: Path) -> None:
    q = network(width_prior=energy_for(network()))
    q.save(tmp_path / "q.safetensors")
    torch.manual_seed(0)
    loaded = probq.load(tmp_path / "q.safetensors", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert loaded.pairs is not None
    assert torch.equal(loaded.pairs, q.pairs)
    assert loaded.quantizer("0.weight").width_prior == q.quantizer("0.weight").width_prior


def test_a_fit_starts_at_the_allocation_and_counts_the_energy_as_data() -> None:
    q = network()
    energy, budget = energy_for(q, 4, pairs=False), probq.Budget(percent=3)
    widths = probq.allocate(q, energy, budget).widths
    next(probq.steps(q, [(X, Y)], budget, epochs=1, prior=energy, seed=0))
    for name, quantizer in q.named_sites():
        if quantizer.free:
            assert quantizer.ladder.bits[int(quantizer.widths().mode.argmax())] == widths[name]
    row, unary = q.quantizer("0.weight").prior().log_probs.numpy(), energy.unary[energy.names.index("0.weight")]
    np.testing.assert_allclose(row[:-1] - row[-1], -16 / 0.001 * unary[:-1], 1e-4)


def test_what_is_no_prior_is_refused() -> None:
    q = network()
    with pytest.raises(ProbqError, match=r"the widths of 0\.weight are .* bits in it and \(2, 8\) in the network"):
        set_width_prior(network(weight=ladder(2, 8)), energy_for(q))
    with pytest.raises(ProbqError, match="another network or plan"):
        network(weight=ladder(2, 8), width_prior=energy_for(q))
    with pytest.raises(ProbqError, match="leave input_prior out"):
        Plan(width_prior=energy_for(q), input_prior=probq.priors.Geometric(0.5))
    plans = {"0": Plan(width_prior=energy_for(q)), "2": Plan()}
    with pytest.raises(ProbqError, match="to every layer"):
        probq.quantize(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), X, lambda layer: plans[layer.name])
    with pytest.raises(ProbqError, match="prior is an Energy"):
        probq.fit(q, [(X, Y)], epochs=1, prior=3, progress=False)
    with pytest.raises(ProbqError, match="widths are fixed"):
        probq.fit(q.at(q.mode()), [(X, Y)], epochs=1, prior=energy_for(q), progress=False)


def test_an_energy_of_another_unit_is_a_prior_once_it_is_said_what_it_is_worth() -> None:
    q = network()
    steps = replace(energy_for(q, pairs=False), unit="step", label="limpq")
    for taken in (
        lambda: probq.fit(q, [(X, Y)], epochs=1, prior=steps, progress=False),
        lambda: network(width_prior=steps),
        lambda: probq.WidthField(q, steps),
    ):
        with pytest.raises(ProbqError, match=r"that of limpq is in step: .*energy.to_nats\(factor\)"):
            taken()
    assert probq.allocate(q, steps, probq.Budget(percent=3)).percent() <= 3  # an order is enough
    set_width_prior(q, steps.to_nats(0.5))
    expected = 0.5 * steps.unary[0]
    row = q.quantizer(steps.names[0]).prior().log_probs.numpy()
    np.testing.assert_allclose(row[-1] - row, expected, atol=1e-6)
