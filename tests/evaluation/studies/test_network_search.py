"""Networks searched over channels and widths, against all of them measured one by one, and costs of real networks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

import probq
from probq import Budget, Plan, ProbqError, cost
from probq.codebooks import ladder
from probq.decisions.widths import fix_widths
from probq.evaluation.studies.network_choices import network_space, resized
from probq.evaluation.studies.network_search import LossPredictor, explore

LIMIT, FACTORS = Budget(percent=0.8), (0.5, 1.0)


class Residual(nn.Module):
    """Channels that are added, a depthwise convolution, and numbers of channels read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.deep, self.body = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 1)
        self.back, self.last = nn.Conv2d(6, 4, 1), nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.last((x + self.back(self.body(self.deep(x).relu()).relu())).relu().flatten(1))


def plan(layer: probq.Layer) -> Plan:
    return Plan(ladder(1, 3), ladder(3, signed=layer.smallest < 0))


def task() -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Classes that two of six inputs tell, a network that knows them, batches for training, and held-out ones."""
    torch.manual_seed(0)
    x = torch.rand(384, 6)
    y = (x[:, 0] > 0.5).long() + 2 * (x[:, 1] > 0.5).long()
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:256]), y[:256]).backward()
        optimizer.step()
    return net, x, list(zip(x[:256].split(64), y[:256].split(64), strict=True)), [(x[256:], y[256:])]


def test_few_measurements_rank_all_networks_and_find_one_of_the_best() -> None:
    net, x, batches, held = task()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given: dict[str, Any] = {"plan": plan, "factors": FACTORS, "networks": 32, "seed": 0, "progress": False}
    found = probq.search_networks(net, x[:64], batches, LIMIT, held, 3, **given)
    counts = itertools.product((8, 16), (6, 12), *3 * [(1, 3)])  # of channels and of bits
    by_hand = [6 * a * w * 8 + a * b * v * 3 + b * 4 * u * 3 for a, b, w, v, u in counts]
    limit = LIMIT.absolute(probq.layers(net, x[:64]))
    assert sorted(one.cost for one in found.measured) == sorted(bops for bops in by_hand if bops <= limit)
    assert found.measured[0].loss == min(one.loss for one in found.measured)
    assert found.quantized.mode().cost() == found.measured[0].cost
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    space = network_space(probq.quantize(net, x[:64], plan), net, x[:64], FACTORS, LIMIT)
    truth = {space.state(one.channels, one.widths): one.loss for one in found.measured}
    taus, places = [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        states = [list(truth)[k] for k in random.permutation(len(truth))]
        known, unknown = states[:12], states[12:]
        guesses = LossPredictor(space, {state: truth[state] for state in known})(np.array(unknown))
        taus.append(kendalltau(guesses, [truth[state] for state in unknown])[0])
        search = explore(space, lambda choice: truth[space.state(*space.parts(choice))], 10, random)
        assert len(search.losses) <= 10
        places.append(list(truth).index(search.best))
    assert np.mean(taus) > 0.6
    assert np.mean(places) < 1
    expected = [found.predict(one.channels, one.widths) for one in found.measured]
    assert kendalltau(expected, list(truth.values()))[0] > 0.6


def test_a_cost_is_that_of_the_network_that_is_meant() -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.rand(4, 2, 3, 3)
    space = network_space(probq.quantize(net, x, plan), net, x, (0.5, 1.0, 1.6), Budget(percent=100))
    assert space.channels == ("stem", "body")  # all others share one of them, or are outputs
    assert space.choices.options[:2] == ((2, 4, 6), (3, 6, 10))
    random = np.random.default_rng(0)
    for _ in range(6):
        state = tuple(int(random.integers(len(own))) for own in space.choices.options)
        channels, widths = space.parts(space.choices.widths(state))
        q = probq.quantize(resized(net, x, channels), x, plan)
        fix_widths(q, widths)
        assert q.mode().cost() == space.cost(state)
        assert space.state(channels, widths) == state


def test_drawn_networks_spend_the_limit() -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.rand(4, 2, 3, 3)
    space = network_space(probq.quantize(net, x, plan), net, x, (0.5, 1.0, 1.6), Budget(percent=0.6))
    states = space.draws(20, np.random.default_rng(0))
    assert len(set(states)) == len(states) > 5
    for state in states:
        larger = [(*state[:k], option + 1, *state[k + 1 :]) for k, option in enumerate(state)]
        inside = [s for s in larger if all(k < len(own) for k, own in zip(s, space.choices.options, strict=True))]
        assert space.choices.keeps(state)
        assert not any(space.choices.keeps(s) for s in inside)


def test_the_largest_channels_stay_and_new_ones_change_nothing() -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.rand(4, 2, 3, 3)
    size = net.stem.weight.detach().flatten(1).norm(dim=1) * net.norm.weight.detach()
    size += net.deep.weight.detach().flatten(1).norm(dim=1) + net.back.weight.detach().flatten(1).norm(dim=1)
    kept = sorted(size.topk(2).indices.tolist())
    with torch.no_grad():
        found, wide = resized(net, x, {"stem": 2}), resized(net, x, {"stem": 7, "body": 9})
        torch.testing.assert_close(found(x), probq.narrow(net, x, {"stem": kept})(x))
        torch.testing.assert_close(wide(x), net(x), rtol=1e-4, atol=1e-5)


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"networks": 3}, "networks must be an integer of 4 or more"),
    ({"factors": ()}, "factors are positive numbers"),
    ({"factors": (0.5, -1)}, "factors are positive numbers"),
    ({"plan": Plan(ladder(0, 2), gates="channel")}, "one width for each tensor"),
    ({"budget": Budget(limit=5, cost=cost.storage)}, "a limit on BOPs"),
    ({"budget": Budget(percent=5, probability=0.9)}, "a limit on BOPs.*without cost and probability"),
    ({"budget": [Budget(percent=5)]}, "a limit on BOPs.*give one Budget"),
    ({"budget": None}, "a limit on BOPs.*not None"),
    ({"budget": Budget(limit=10)}, "the smallest network costs .* more than the limit of 10"),
)


@pytest.mark.parametrize(("given", "sentence"), BAD)
def test_what_cannot_be_is_told(given: dict[str, Any], sentence: str) -> None:
    net, x, batches, held = task()
    options = {"budget": LIMIT, "validation": held, "progress": False, **given}
    with pytest.raises(ProbqError, match=sentence):
        probq.search_networks(net, x, batches, **options)


def test_a_network_without_channels_of_its_own_is_refused() -> None:
    net, x = nn.Sequential(nn.Linear(6, 4)), task()[1]
    with pytest.raises(ProbqError, match="can change in no layer"):
        probq.search_networks(net, x, [], Budget(percent=50), [])
