"""Restarts, their agreement, the settling of the bound, and the temperature: by hand algebra, ArviZ, plain loops."""

import itertools
import math
import sys
import warnings
from typing import Any

import arviz
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal as NormalLaw
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import Budget, Plan, ProbqError, Quantized, Rates, estimators, priors
from probq.codebooks import ladder
from probq.evaluation.diagnostics.predictive import draw_outputs
from probq.likelihoods import Normal
from probq.training.svi.bound_trend import BoundTrend, bound_trend, warn_unsettled
from probq.training.svi.history import History, Step

XS = torch.rand(48, 3, generator=torch.Generator().manual_seed(1))
YS = (XS.sum(1) > 1.5).long()
PAIRS = [(XS[k : k + 16], YS[k : k + 16]) for k in range(0, 48, 16)]
STILL = Rates(gates=1e-6)


def network(likelihood: Any = None, rungs: tuple[int, ...] = (1, 2, 4), **options: Any) -> Quantized:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = Plan(weight=ladder(*rungs), **{"input": ladder(2, 4, signed=False), **options})
    return probq.quantize(net, XS, plan=plan, likelihood=likelihood)


def chain(seed: int, logits: float | None = None) -> Quantized:
    q = network()
    q.calibrated = True
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.copy_(torch.randn(quantizer.logits.shape, generator=generator))
            if logits is not None:
                quantizer.logits.fill_(logits)
    return q


def test_chains_of_one_law_agree() -> None:
    frame = probq.convergence([chain(0), chain(0), chain(0)], draws=2000)
    assert frame.index.tolist() == ["0.weight", "0.input", "2.weight", "2.input", "cost"]
    assert (frame["rhat"] < 1.02).all()
    assert (frame["ess"] > 3000).all()
    for name in ("0.weight", "2.input"):
        z = chain(0).quantizer(name)
        mean = float(z.probs().detach() @ torch.tensor(z.ladder.bits, dtype=torch.float32))
        assert frame.loc[name, "chain 1"] == pytest.approx(mean, abs=0.15)
    assert frame.loc[["0.weight", "2.weight"], "cost share"].sum() == pytest.approx(100)


def test_rhat_is_the_classic_formula_where_chains_are_normal_enough() -> None:
    """Split R-hat of Gelman and Rubin from means and variances, on the cost (ArviZ works on its ranks)."""
    chains = [chain(0, -0.5), chain(0, 0.5)]
    frame = probq.convergence(chains, draws=4000)
    data = probq.to_arviz(chains, draws=4000)
    halves = data.posterior["cost"].values.reshape(4, 2000)
    within, between = halves.var(1, ddof=1).mean(), 2000 * halves.mean(1).var(ddof=1)
    classic = math.sqrt((1999 / 2000 * within + between / 2000) / within)
    assert classic > 1.05
    assert frame.loc["cost", "rhat"] == pytest.approx(classic, rel=0.1)
    assert frame.loc["cost", "rhat"] == pytest.approx(float(arviz.rhat(data.posterior["cost"].to_dataset())["cost"]))


@pytest.mark.parametrize("draws", [1, 3, 10.0, True])
def test_halves_of_chains_need_draws(draws: Any) -> None:
    with pytest.raises(ProbqError, match="a number of 4 or more"):
        probq.convergence([chain(0), chain(1)], draws=draws)


def test_sure_chains() -> None:
    same = probq.convergence([chain(0, 40.0), chain(0, 40.0)], draws=100)
    assert (same["rhat"] == 1).all()
    other = probq.convergence([chain(0, 40.0), chain(0, -40.0)], draws=100)
    assert other.loc["0.weight", ["rhat", "ess", "chain 0", "chain 1"]].tolist() == [math.inf, 2, 4, 1]


def test_restarts_that_agree_are_silent_and_leave_the_network() -> None:
    q = network()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    chains = probq.restarts(q, PAIRS, epochs=1, chains=2, spread=0, rates=STILL, progress=False)
    assert [c.calibrated for c in chains] == [True, True]
    assert not q.calibrated
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())
    assert not torch.equal(chains[0].net[0].weight, chains[1].net[0].weight)  # seeds differ


def test_restarts_that_disagree_say_so() -> None:
    with pytest.warns(UserWarning, match=r"disagree on .*weight \(R-hat .*Fit longer"):
        probq.restarts(network(), iter(PAIRS), epochs=1, chains=2, spread=8, rates=STILL, progress=False)


def test_layers_that_cost_little_may_differ() -> None:
    """Pruned but for the last layer's weight: what differs there costs nothing to speak of."""
    from probq.evaluation.studies.restarts import _disagreeing

    frame = probq.convergence([chain(0, 40.0), chain(0, -40.0)], draws=100)
    assert set(_disagreeing(frame)) == {"0.weight", "0.input", "2.weight", "2.input"} - {"0.input"}
    frame["cost share"] = [96, 96, 4, 4, 100]
    assert set(_disagreeing(frame)) == {"0.weight"}


OTHER: dict[str, tuple[Any, str]] = {
    "plan": (lambda: network(rungs=(1, 2)), "differ in their plan"),
    "temperature": (lambda: changed(temperature=0.5), "differ in their temperature"),
    "budget": (lambda: changed(budget=Budget(percent=1)), "differ in their budget"),
    "layers": (lambda: probq.quantize(nn.Linear(3, 2), XS), "differ in their layers"),
    "likelihood": (lambda: network(probq.likelihoods.Normal()), "differ in their likelihood"),
    "prior of the weights' widths": (lambda: network(width_prior=priors.Geometric(0.1)), "differ in their plan"),
    "prior of the inputs' widths": (lambda: network(input_prior=priors.Geometric(0.1)), "differ in their plan"),
    "prior of the codes": (lambda: network(code_prior=priors.Normal()), "differ in their plan"),
    "its width": (lambda: network(code_prior=priors.Normal(sd=0.1)), "differ in their plan"),
    "estimator": (lambda: network(estimator=estimators.MeanGradient()), "differ in their plan"),
    "ties": (lambda: network(tie_weight="one"), "differ in their plan"),
    "codebooks": (lambda: network(input=ladder(3, 4, signed=False)), "differ in their plan"),
    "no network": (lambda: nn.Linear(3, 2), "list of them"),
}


def changed(**attributes: Any) -> Quantized:
    q = network()
    for name, value in attributes.items():
        setattr(q, name, value)
    return q


@pytest.mark.parametrize(("other", "message"), OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("use", [probq.convergence, probq.to_arviz])
def test_chains_of_different_problems_are_refused(use: Any, other: Any, message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        use([network(), other()])


def test_one_chain_cannot_be_compared() -> None:
    with pytest.raises(ProbqError, match="two chains or more"):
        probq.convergence([network()])
    for chains in (1, 2.0, True):
        with pytest.raises(ProbqError, match="number of chains"):
            probq.restarts(network(), PAIRS, chains=chains)
    with pytest.raises(ProbqError, match="spread"):
        probq.restarts(network(), PAIRS, spread=math.nan)


NOISE = np.random.default_rng(3).normal(0, 0.3, 1200)
STEPS = np.arange(1200)


def test_drift_is_the_median_of_pairwise_slopes() -> None:
    values = 5 - 0.002 * STEPS + NOISE
    blocks = values.reshape(60, 20).mean(1)[-20:]
    slopes = [(blocks[j] - blocks[i]) / (j - i) for i, j in itertools.combinations(range(20), 2)]
    found = bound_trend(values)
    assert found is not None
    assert found.change == pytest.approx(19 * np.median(slopes))
    assert found.low < -0.002 * 20 * 19 < found.high < 0
    assert not found.settled


def test_settled_bounds() -> None:
    for values in (NOISE, 3 * np.exp(-STEPS / 60) + NOISE, np.where(STEPS == 1100, 500.0, NOISE), np.ones(1200)):
        found = bound_trend(values)
        assert found is not None
        assert found.settled
    assert bound_trend(NOISE[:299]) is None
    assert bound_trend(NOISE[:300]) is not None


def test_settled_searches_seldom_warn() -> None:
    generator = np.random.default_rng(4)
    found = [bound_trend(generator.normal(size=600)) for _ in range(300)]
    assert sum(d is not None and not d.settled for d in found) <= 12  # 1 % expected


def test_a_rising_bound_has_not_settled() -> None:
    found = bound_trend(0.002 * STEPS + NOISE)
    assert found is not None
    assert not found.settled
    assert found.change > 0


def test_small_but_sure_changes_are_settled() -> None:
    assert BoundTrend(change=-0.1, low=-0.12, high=-0.08, passed=1.0).settled
    assert not BoundTrend(change=-0.3, low=-0.32, high=-0.28, passed=1.0).settled


def history(bound: np.ndarray) -> History:
    steps = [Step(k, 0, "search", 0.0, float(v) - 1, 1.0, 1.0, None, 0.0) for k, v in enumerate(bound)]
    tuned = [Step(1200 + k, 1, "tune", 0.0, 1000.0 * k, 0.0, 1.0, None, 0.0) for k in range(900)]
    return History(steps + tuned)


def test_the_warning_says_what_to_do() -> None:
    with pytest.warns(UserWarning, match=r"fell by 0\.\d+ nats.*Fit longer \(epochs\)"):
        warn_unsettled(history(5 - 0.002 * STEPS + NOISE))
    with pytest.warns(UserWarning, match="the budget still bites"):
        warn_unsettled(history(0.002 * STEPS + NOISE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unsettled(history(NOISE))


def test_fit_looks_whether_it_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[History] = []
    monkeypatch.setattr(sys.modules["probq.training.fit"], "warn_unsettled", seen.append)
    found = probq.fit(network(), PAIRS, epochs=1, progress=False)
    assert seen == [found]


def test_temperature_with_the_best_averaged_predictive() -> None:
    q = network()
    held = [(XS[:20], YS[:20]), (XS[20:30], YS[20:30])]
    tuned = probq.tune_temperature(q, PAIRS, held, (0.5, 0.001), epochs=1, draws=3, seed=5, progress=False)
    assert tuned.table.index.tolist() == [0.001, 0.5]  # from cold to warm
    assert tuned.table.columns.tolist() == ["nll", "mode nll", "mode accuracy", "cost"]
    assert tuned.best == tuned.table["nll"].idxmin() == tuned.q.temperature
    assert not q.calibrated
    decided = torch.nn.functional.cross_entropy(tuned.q(XS[:30]), YS[:30])
    assert tuned.table.loc[tuned.best, "mode nll"] == pytest.approx(float(decided), rel=1e-5)


def test_temperature_is_scored_at_the_widths_that_its_fit_tuned() -> None:
    budget, rates = Budget(percent=1.2), Rates(gates=0.3)  # the search ends before all widths are sure
    found = probq.tune_temperature(
        network(), PAIRS, [(XS, YS)], (0.5,), budget=budget, epochs=4, draws=9, rates=rates, progress=False
    )

    def averaged(q: Quantized) -> float:
        probs = torch.stack(q.outputs(next(draw_outputs(q, 9, 0, budget)), XS)).softmax(-1).mean(0)
        return -float(probs[range(48), YS].log().mean())

    nll = found.table.loc[0.5, "nll"]
    assert nll == pytest.approx(averaged(found.q.at(found.q.mode())), rel=1e-5)
    assert nll != pytest.approx(averaged(found.q), rel=1e-4)


def test_averaged_predictive_of_numbers_by_hand() -> None:
    from probq.evaluation.studies.temperature import _scores

    q = network(Normal(0.5))
    y = torch.rand(48, 2, generator=torch.Generator().manual_seed(4))
    found = _scores(q, [(XS, y)], draws=4, seed=9)
    outputs = q.outputs(next(draw_outputs(q, 4, 9)), XS)
    density = torch.stack([NormalLaw(o, 0.5).log_prob(y).sum(-1).exp() for o in outputs]).mean(0)
    assert found["nll"] == pytest.approx(-float(density.log().mean()), rel=1e-5)
    assert set(found) == {"nll", "mode nll"}


@pytest.mark.parametrize("temperatures", [(), (0.1, 0.1), (0.1, -1.0), (0.0,), ("warm",), (math.nan,), (True,)])
def test_bad_temperatures(temperatures: Any) -> None:
    with pytest.raises(ProbqError, match="temperatures must be"):
        probq.tune_temperature(network(), PAIRS, PAIRS, temperatures)


def test_nan_of_a_validation_figure_is_named() -> None:
    class Spoiled(NormalLaw):
        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            broken = math.nan if len(value) == 7 else 0.0
            return super().log_prob(value) + broken

    data = [(XS, torch.rand(48, 2))]
    q = network(lambda output: Spoiled(output, 1.0))
    with pytest.raises(ProbqError, match=r"temperature 0\.01 is NaN"):
        probq.tune_temperature(q, data, [(XS[:7], torch.rand(7, 2))], (0.01,), epochs=1, progress=False)


def test_data_loaders_are_read_by_every_restart() -> None:
    loader = DataLoader(TensorDataset(XS, YS), batch_size=24, shuffle=True)
    chains = probq.restarts(network(), loader, epochs=1, chains=2, spread=0, rates=STILL, progress=False)
    assert len(chains) == 2
