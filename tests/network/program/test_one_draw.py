"""Pyro's ways to draw many networks in one run: one sentence says that a network runs with one draw at a time."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import probq

X, Y = torch.linspace(-1, 1, 24).reshape(6, 4), torch.arange(6) % 3


def make(gates: str = "tensor", decided: bool = False) -> probq.Quantized:
    torch.manual_seed(0)
    q = probq.quantize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), X, probq.Plan(gates=gates))
    return q.at(q.mode()) if decided else q


def under_a_plate(q: probq.Quantized) -> Any:
    with pyro.plate("networks", 3, dim=-5):
        return q.model(X)


RUNS: dict[str, Callable[[probq.Quantized], Any]] = {
    "Predictive, parallel": lambda q: Predictive(q.model, guide=q.guide, num_samples=5, parallel=True)(X),
    "prior, parallel": lambda q: Predictive(q.model, num_samples=5, parallel=True)(X),
    "particles": lambda q: Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1).loss(q.model, q.guide, X, Y),
    "mean field": lambda q: TraceMeanField_ELBO(4, vectorize_particles=True, max_plate_nesting=1).loss(
        q.model, q.guide, X, Y
    ),
    "plate": under_a_plate,
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("gates", "decided"), [("tensor", False), ("channel", False), ("tensor", True)])
def test_many_draws_in_one_run_are_refused(run: Callable[[Any], Any], gates: str, decided: bool) -> None:
    with pytest.raises(probq.ProbqError, match="one draw at a time, so use Predictive"):
        run(make(gates, decided))


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_one_draw_after_another_is_taken(gates: str) -> None:
    q = make(gates)
    drawn = Predictive(q.model, guide=q.guide, num_samples=5)(X)
    assert drawn["obs"].shape == (5, 6)
    posterior = {name: value for name, value in drawn.items() if name != "obs"}
    assert Predictive(q.model, posterior_samples=posterior)(X)["obs"].shape == (5, 6)
    assert Trace_ELBO(4).loss(q.model, q.guide, X, Y) > 0
