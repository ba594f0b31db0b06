"""What ArviZ gets: groups, dimensions and values, by enumeration and by hand; and what its functions make of it.

It runs with ArviZ 0.x and with 1.x, whichever is installed.
"""

import math
from typing import Any

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from enumerated_widths import enumerated, example, network, quantized
from torch.distributions import Normal as NormalLaw

import probq
from probq.codebooks import ladder
from probq.likelihoods import Normal

ONE = int(arviz.__version__.split(".")[0]) >= 1


def test_arviz_groups() -> None:
    q = quantized("channel")
    q.temperature = 0.125
    data = probq.to_arviz(q, draws=40, seed=1)
    again, other = probq.to_arviz(q, draws=40, seed=1), probq.to_arviz(q, draws=40, seed=2)
    assert data.posterior["0.weight"].dims == ("chain", "draw", "0.weight_channel")
    assert data.posterior["0.weight"].shape == (1, 40, 3)
    assert data.posterior["0.weight_channel"].values.tolist() == [0, 1, 2]
    assert data.posterior["3.weight.scale"].dims == data.posterior["cost"].dims == ("chain", "draw")
    assert set(np.unique(data.posterior["0.weight"])) <= {0, 2, 8}
    assert data.posterior.equals(again.posterior)
    assert not data.posterior.equals(other.posterior)
    assert data.constant_data["macs"].to_series().to_dict() == {"0": 108, "3": 24}
    assert data.constant_data["weights"].to_series().to_dict() == {"0": 27, "3": 24}
    assert data.posterior.attrs["temperature"] == 0.125
    assert "weight bits * input bits" in data.posterior.attrs["convention"]
    assert data.posterior.attrs["torch_version"] == torch.__version__


def test_arviz_cost_has_the_enumerated_moments() -> None:
    q = quantized()
    values, probs = enumerated(q)
    drawn = probq.to_arviz(q, draws=20000).posterior["cost"].values.ravel()
    values = 100 * values / (132 * 1024)
    sd = math.sqrt(probs @ values**2 - (probs @ values) ** 2)
    assert drawn.mean() == pytest.approx(probs @ values, abs=5 * sd / math.sqrt(20000))
    assert drawn.std() == pytest.approx(sd, rel=0.05)


def test_arviz_of_weight_gates_holds_the_mean() -> None:
    data = probq.to_arviz(quantized("weight"), draws=30).posterior["0.weight"]
    assert data.dims == ("chain", "draw")
    assert np.allclose(data.values * 27, np.round(data.values * 27))  # a mean over 27 weights


@pytest.mark.parametrize("draws", [0, -1, 2.5, True, None])
def test_number_of_draws_is_checked(draws: Any) -> None:
    with pytest.raises(probq.ProbqError, match="number of draws"):
        probq.to_arviz(quantized(), draws=draws)


Y = (example().mean((1, 2, 3)) > 0.5).long()
BATCHES = [(example()[:5], Y[:5]), (example()[5:], Y[5:])]


def groups(data: Any) -> set[str]:
    return set(data.children) if ONE else set(data.groups())


def test_gates_and_scales_are_those_of_the_drawn_rung() -> None:
    q = quantized()
    posterior = probq.to_arviz(q, draws=60).posterior
    bits, opened = posterior["0.weight"].values[0], posterior["0.weight.gates"]
    assert opened.dims == ("chain", "draw", "0.weight_opens")
    assert opened["0.weight_opens"].values.tolist() == [2, 8]
    assert opened.sel({"0.weight_opens": 8}).values[0].tolist() == [float(b == 8) for b in bits]
    assert opened.sel({"0.weight_opens": 2}).values[0].tolist() == [float(b >= 2) for b in bits]
    table = dict(zip((0, 2, 8), q.quantizer("0.weight").scales().detach().double().reshape(3, -1), strict=True))
    expected = [math.prod(table[int(b)].tolist()) ** (1 / 3) for b in bits]
    np.testing.assert_allclose(posterior["0.weight.scale"].values[0], expected, rtol=1e-6)


def fixed(data: Any) -> list[str]:
    return [str(name) for name in data.constant_data.data_vars if name not in ("macs", "weights")]


def test_what_is_fixed_is_constant_data() -> None:
    """A width that cannot vary is no variable of the posterior; each chain has its own scale."""
    a, b = quantized(), quantized()
    with torch.no_grad():
        b.quantizer("0.input").log2_scale += 1
    data = probq.to_arviz([a, b], draws=3)
    assert fixed(data) == ["0.input", "0.input.scale"]
    assert not {"0.input", "0.input.scale", "0.input.gates"} & set(data.posterior)
    assert data.constant_data["0.input"].values.tolist() == [8, 8]
    expected = [float(q.quantizer("0.input").scales().detach()) for q in (a, b)]
    assert data.constant_data["0.input.scale"].values == pytest.approx(expected)
    assert expected[0] != expected[1]


def test_decided_channels_are_constant_data() -> None:
    q = quantized("channel")
    decided = q.mode()
    data = probq.to_arviz(q.at(decided), draws=3)
    assert data.constant_data["0.weight"].dims == ("chain", "0.weight_channel")
    assert data.constant_data["0.weight"].values[0].tolist() == np.asarray(decided.widths["0.weight"]).tolist()
    assert list(data.posterior.data_vars) == ["cost"]
    assert data.posterior["cost"].values.tolist() == [pytest.approx([decided.percent()] * 3)]


def test_summary_of_all_variables_divides_by_nothing() -> None:
    data = probq.to_arviz([quantized(), quantized()], draws=200)
    assert arviz.summary(data)["sd"].astype(float).min() > 0
    settled = quantized()
    with torch.no_grad():
        settled.quantizer("0.weight").logits.fill_(30.0)
    frame = arviz.summary(probq.to_arviz([settled, settled], draws=200), kind="stats")
    assert float(frame.loc["0.weight", "mean"]) == 8


def test_channels_have_the_scales_of_their_own_rungs() -> None:
    q = quantized("channel")
    posterior = probq.to_arviz(q, draws=25).posterior
    scales = q.quantizer("0.weight").scales().detach().double().reshape(3, 3).numpy()  # [rung, channel]
    for bits, scale, opened in zip(
        posterior["0.weight"].values[0],
        posterior["0.weight.scale"].values[0],
        posterior["0.weight.gates"].values[0],
        strict=True,
    ):
        own = [scales[(0, 2, 8).index(b), c] for c, b in enumerate(bits)]
        assert scale == pytest.approx(math.prod(own) ** (1 / 3))
        assert opened.tolist() == pytest.approx([np.mean(bits >= 2), np.mean(bits >= 8)])


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_draws_with_data_have_the_same_shapes_and_law(gates: str) -> None:
    q = quantized(gates)
    with_data = probq.to_arviz(q, draws=80, batches=BATCHES).posterior
    without = probq.to_arviz(q, draws=80).posterior
    assert {n: v.shape for n, v in with_data.items()} == {n: v.shape for n, v in without.items()}
    for name in without:
        spread = float(without[name].std()) + 1e-9
        assert float(abs(with_data[name].mean() - without[name].mean())) < 6 * spread / math.sqrt(80)


def test_log_likelihood_is_that_of_a_network_with_the_drawn_widths() -> None:
    """Widths and codes are certain here, so every draw is the decided network."""
    q = probq.quantize(network(), example(), probq.Plan(weight=ladder(2), input=ladder(8), codes=1))
    q.calibrated = True
    data = probq.to_arviz(q, draws=5, batches=iter(BATCHES))
    expected = -torch.nn.functional.cross_entropy(q(example()), Y, reduction="none")
    found = data.log_likelihood["y"]
    assert found.dims == ("chain", "draw", "observation")
    for row in found.values[0]:
        np.testing.assert_allclose(row, expected.detach().numpy(), rtol=1e-5)
    assert data.observed_data["y"].values.tolist() == Y.tolist()


def test_replicated_targets_have_the_predictive_frequencies() -> None:
    q = quantized(rungs=(4,))
    data = probq.to_arviz(q, draws=200, batches=BATCHES)
    probs = q.predict(example(), 200, seed=3).softmax(-1).mean(0)[:, 1].detach().numpy()
    found = data.posterior_predictive["y"].values[0].mean(0)
    np.testing.assert_allclose(found, probs, atol=6 * 0.5 / math.sqrt(200))
    assert set(np.unique(data.posterior_predictive["y"])) <= {0, 1}


def test_real_targets_of_several_numbers() -> None:
    q = probq.quantize(
        network(), example(), probq.Plan(weight=ladder(4), input=ladder(8), codes=1), likelihood=Normal(0.5)
    )
    q.calibrated = True
    y = torch.rand(8, 2, generator=torch.Generator().manual_seed(3))
    data = probq.to_arviz(q, draws=100, batches=[(example(), y)])
    np.testing.assert_allclose(
        data.log_likelihood["y"].values[0, 0], NormalLaw(q(example()), 0.5).log_prob(y).sum(-1).detach(), rtol=1e-5
    )
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "observation", "y_dim_0")
    assert float(data.posterior_predictive["y"].std("draw").mean()) == pytest.approx(0.5, rel=0.1)


def test_groups_that_were_asked_for() -> None:
    q = quantized()
    plain, full = {"posterior", "constant_data"}, {"posterior_predictive", "observed_data"}
    assert groups(probq.to_arviz(q, 4)) == plain
    assert groups(probq.to_arviz(q, 4, batches=BATCHES)) == plain | full | {"log_likelihood"}
    assert groups(probq.to_arviz(q, 4, batches=BATCHES, log_likelihood=False)) == plain | full
    with pytest.raises(probq.ProbqError, match="log-likelihood needs data: give"):
        probq.to_arviz(q, 4, log_likelihood=True)
    with pytest.raises(probq.ProbqError, match="does not fit the likelihood"):
        probq.to_arviz(q, 4, batches=[(x, y + 100) for x, y in BATCHES])


def test_restarts_become_chains() -> None:
    a, b = quantized(), quantized()
    with torch.no_grad():
        b.quantizer("0.weight").logits.fill_(30.0)
    data = probq.to_arviz([a, b], draws=50, seed=3)
    assert data.posterior["0.weight"].shape == (2, 50)
    assert (data.posterior["0.weight"].sel(chain=1) == 8).all()
    alone = probq.to_arviz(a, 50, seed=3).posterior
    for name in alone.data_vars:
        assert np.array_equal(data.posterior[name].values[:1], alone[name].values)


def test_summary_and_extract() -> None:
    data = probq.to_arviz([quantized(), quantized()], draws=200)
    frame = arviz.summary(data, var_names=["0.weight", "3.weight", "cost"])
    assert frame.index.tolist() == ["0.weight", "3.weight", "cost"]
    assert float(frame.loc["cost", "mean"]) == pytest.approx(float(data.posterior["cost"].mean()), rel=0.05)
    assert arviz.extract(data)["cost"].shape == (400,)


# eight observations and sixty draws: ArviZ says that some of them weigh much
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 with pandas 3.1
def test_loo_and_compare_tell_good_from_bad() -> None:
    """Importance-sampling leave-one-out, near the plain predictive log score where draws hardly vary."""
    plan = probq.Plan(weight=ladder(4), input=ladder(8), spread=1.0)  # draws that differ: ArviZ 1.x refuses ties
    good, bad = (probq.quantize(network(), example(), plan) for _ in range(2))
    good.calibrated = bad.calibrated = True
    with torch.no_grad():
        bad.net[3].bias += torch.tensor([3.0, -3.0])
    found = {name: probq.to_arviz(q, draws=60, batches=BATCHES) for name, q in (("good", good), ("bad", bad))}
    elpd = {name: arviz.loo(data) for name, data in found.items()}
    for name, data in found.items():
        plain = np.log(np.exp(data.log_likelihood["y"].values[0]).mean(0)).sum()
        value = elpd[name].elpd if ONE else elpd[name].elpd_loo
        assert float(value) == pytest.approx(plain, abs=0.5)
    order = sorted(found, key=lambda name: -float(elpd[name].elpd if ONE else elpd[name].elpd_loo))
    assert arviz.compare(found).index.tolist() == order


# ArviZ 0.23 calls matplotlib 3.11 in a way that the next one will not take
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_pictures() -> None:
    data = probq.to_arviz(quantized(), draws=40)
    if ONE:
        arviz.plot_dist(data, var_names=["cost"], backend="matplotlib")
    else:
        arviz.plot_posterior(data, var_names=["cost"])
    assert plt.get_fignums()
    plt.close("all")
