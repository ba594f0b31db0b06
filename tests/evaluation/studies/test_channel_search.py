"""Channels that a budget pays for: what a search keeps, makes and refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Budget, ProbqError, cost
from probq.evaluation.studies import channel_search


def task() -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]]]:
    """Classes that two of four inputs tell, and a network that knows them."""
    torch.manual_seed(0)
    x = torch.rand(256, 4)
    y = (x[:, 0] > 0.5).long() + 2 * (x[:, 1] > 0.5).long()
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, x, list(zip(x.split(32), y.split(32), strict=True))


def sizes(net: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(module.weight.shape) for module in net if isinstance(module, nn.Linear)]


def test_a_tight_budget_takes_channels_away_and_what_is_left_keeps_it() -> None:
    net, x, batches = task()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    full = cost_of(net, x)
    found = probq.search_channels(net, x, batches, Budget(limit=0.5 * full), 10, rounds=2, seed=0, progress=False)
    (a, _), (b, a2), (c, b2) = sizes(found.net)
    assert (a, b, c) == (a2, b2, 4)
    assert a * b < 120
    assert cost_of(found.net, x) <= 0.5 * full
    assert [set(told) for told in found.rounds] == [{"0", "2"}] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_layers_whose_channels_are_all_wanted_get_more() -> None:
    net, x, _ = task()
    there = {"0": np.full(12, 0.95), "2": np.array([0.1, 0.9, 0.6, 0.4, 0.8, 0.7, 0.2, 0.9, 0.9, 0.9])}
    resized = channel_search._resized(net, x, there)
    assert sizes(resized) == [(18, 4), (7, 18), (4, 7)]
    kept = probq.narrow(net, x, {"2": [1, 2, 4, 5, 7, 8, 9]})
    torch.testing.assert_close(resized(x), kept(x), rtol=1e-4, atol=1e-5)
    nothing = channel_search._resized(net, x, {"2": np.full(10, 0.2) + 0.01 * np.arange(10)})
    assert sizes(nothing) == [(12, 4), (1, 12), (4, 1)]


@pytest.mark.parametrize("limit", [100.0, 0.7, 0.3, 0.1])
def test_the_most_probable_channels_within_the_limit_stay(limit: float) -> None:
    net, x, _ = task()
    order = np.random.default_rng(0).permutation(22) / 22
    there = {"0": order[:12], "2": order[12:]}
    most = limit * cost_of(net, x)
    found = sizes(channel_search._within(net, x, there, 4, most))
    by_hand = []
    for least in [*np.sort(order), np.inf]:
        a, b = (max(1, int((own >= least).sum())) for own in there.values())
        if 4 * 8 * 4 * a + 16 * (a * b + b * 4) <= most:
            by_hand.append((a, b))
    assert (found[0][0], found[1][0]) == by_hand[0]


def cost_of(net: nn.Module, x: Tensor) -> float:
    return probq.quantize(net, x, probq.Plan(probq.codebooks.ladder(4), probq.codebooks.ladder(4))).mode().cost()


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"bits": 9}, "1 to 8 bits, not 3 and 9"),
    ({"rounds": 0}, "1 round or more"),
    ({"budget": Budget(limit=5, cost=cost.storage)}, "a limit on BOPs"),
    ({"budget": Budget(percent=5, probability=0.9)}, "a limit on BOPs.*without cost and probability"),
    ({"budget": [Budget(percent=5)]}, "a limit on BOPs.*give one Budget"),
    ({"budget": None}, "a limit on BOPs.*not None"),
    ({"budget": Budget(limit=10)}, "one channel in each layer at 4 bits costs more than the limit of 10 BOPs"),
)


@pytest.mark.parametrize(("given", "sentence"), BAD)
def test_what_cannot_be_is_told(given: dict[str, Any], sentence: str) -> None:
    net, x, batches = task()
    with pytest.raises(ProbqError, match=sentence):
        probq.search_channels(net, x, batches, **{"budget": Budget(percent=1), "progress": False, **given})


def test_a_network_without_channels_of_its_own_is_refused() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3)), torch.rand(8, 4)
    with pytest.raises(ProbqError, match="can change in no layer"):
        probq.search_channels(net, x, [(x, torch.zeros(8, dtype=torch.int64))], Budget(percent=50), progress=False)
