"""Limits of whole networks, pruned channels, tables and ties, against sums over every choice of widths.

What all costs keep is in `tests/conformance`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyro
import pytest
import torch
from cost_networks import chain, choices, moved, same
from matplotlib import pyplot
from torch import nn

import probq
from probq import Budget, Plan, ProbqError, Quantized
from probq import cost as costs
from probq.codebooks import ladder
from probq.decisions.widths import fix_widths
from probq.decisions.within_budget import probability_within
from probq.evaluation.diagnostics import width_draws
from probq.network.tracing.layer import Layer
from probq.network.tracing.trace import layers


def test_limits_that_cannot_be_kept_are_named() -> None:
    q = chain(same())
    least = min(sum(layer.weights * bits[layer.weight] for layer in q.layers) for _, bits in choices(q))
    wide, narrow = Budget(percent=100), Budget(limit=least - 1, cost=costs.storage)
    for act in (q.mode, lambda b: q.sample(1, b, seed=0), lambda b: next(probq.steps(q, data(), b))):
        with pytest.raises(ProbqError, match=rf"{least - 1:,.0f} storage .* cannot be reached"):
            act([wide, narrow])
        with pytest.raises(ProbqError, match=r"9 largest_activation cannot be reached: layer 0 alone costs 10"):
            act([wide, Budget(limit=9, cost=costs.largest_activation)])
    assert probability_within(q, Budget(limit=9, cost=costs.largest_activation)) == 0
    for wrong in (3, [3], Budget):
        with pytest.raises(ProbqError, match=r"a budget is a probq.Budget or a list"):
            q.mode(wrong)  # type: ignore[arg-type]


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(8, 5, generator=generator), torch.arange(8) % 3)] * 4


def test_training_under_several_limits_keeps_them_all(tmp_path: Path) -> None:
    q = chain(same(tie_weight="all"))
    budget = [
        Budget(percent=0.6), Budget(limit=60, cost=costs.storage), Budget(limit=10, cost=costs.largest_activation),
    ]  # fmt: skip
    history = probq.fit(q, data(), budget, epochs=12, progress=False, seed=0, rates=probq.Rates(gates=0.1))
    a = q.mode()
    for one in budget:
        assert a.cost(one.cost) <= one.absolute(q.layers)
        assert float(q.expected_cost(q.cost_tables(one.cost)).detach()) <= 1.2 * one.absolute(q.layers)
    assert {step.phase for step in history.steps} == {"search", "tune"}
    rows = history.to_frame()
    assert len(rows.columns) == 10 + 2 * 3
    at_end = [a.cost(one.cost) * 100 / costs.full(q.layers, one.cost) for one in budget]
    assert rows.iloc[-1][["percent", "percent 2", "percent 3"]].tolist() == pytest.approx(at_end)
    assert len(probq.table(q)) == 3
    assert a.limit == tuple(one.absolute(q.layers) for one in budget)
    assert probq.lower(q, a).metadata["limit"] == list(a.limit)
    q.save(tmp_path / "q")
    assert probq.load(tmp_path / "q", nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3))).budget == tuple(
        budget
    )


# ---- channels ----


class Residual(nn.Module):
    """Convolutions in a chain, and one behind a sum, whose channels no single layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
        self.c, self.out = nn.Conv2d(2, 3, 1), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.a(x)))
        x = self.c(torch.nn.functional.max_pool2d(x, 2) + self.b(torch.nn.functional.max_pool2d(x, 2)))
        return self.out(torch.nn.functional.gelu(x).mean((2, 3)))


def test_who_reads_whose_channels() -> None:
    found = {layer.name: layer.reads for layer in layers(Residual().eval(), torch.rand(2, 1, 6, 6))}
    assert found == {"a": None, "b": "a.weight", "c": None, "out": "c.weight"}
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6),
        nn.Dropout(), nn.Linear(6, 3), nn.Softmax(1), nn.Linear(3, 2),
    )  # fmt: skip
    found = {layer.name: layer.reads for layer in layers(net, torch.rand(2, 1, 6, 6))}
    assert found == {"0": None, "2": None, "5": "2.weight", "7": "5.weight", "9": None}


class Reshaped(nn.Module):
    """Joins and swaps axes in ways that tear channels apart."""

    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor], second: nn.Module) -> None:
        super().__init__()
        self.conv, self.second, self.how = nn.Conv2d(1, 4, 1), second, how

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(self.how(self.conv(x)))


@pytest.mark.parametrize(
    ("how", "second"),
    [
        (lambda x: x.transpose(1, 2), nn.Conv2d(4, 3, 1)),
        (lambda x: x.mean(1), nn.Linear(4, 3)),
        (lambda x: x.mean(-3), nn.Linear(4, 3)),
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), nn.Linear(64, 3)),
        (lambda x: x, nn.Linear(4, 3)),
        (lambda x: x.reshape(-1, 16), nn.Linear(16, 3)),
        (lambda x: x.reshape(x.shape[0], 2, 2, 16), nn.Conv2d(2, 3, 1)),
        (lambda x: torch.cat([x, x], 1), nn.Conv2d(8, 3, 1)),
        (lambda x: x * x.detach(), nn.Conv2d(4, 3, 1)),
        (lambda x: x.softmax(1), nn.Conv2d(4, 3, 1)),
    ],
)
def test_channels_that_are_torn_apart_are_not_claimed(how: Any, second: nn.Module) -> None:
    assert layers(Reshaped(how, second), torch.rand(2, 1, 4, 4))[-1].reads is None


@pytest.mark.parametrize("name", ["chain", "residual", "applied twice"])
def test_a_channel_that_is_said_to_be_read_alone_reaches_the_output_alone(name: str) -> None:
    """Where pruned channels are not counted, the weights that read them do not move with the input."""
    torch.manual_seed(1)
    net, example = CHANNELS[name][0](), CHANNELS[name][1]
    net.eval()
    for layer in layers(net, example):
        if layer.reads is None:
            continue
        with torch.no_grad():
            net.get_parameter(layer.reads)[0] = 0
        seen: list[torch.Tensor] = []
        net.get_submodule(layer.name).register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        net(example)
        net(torch.rand_like(example))
        weight = net.get_parameter(layer.weight)
        spread = (seen[0] - seen[-1]).abs().amax(tuple(a for a in range(seen[0].dim()) if a != 1))
        per = spread.reshape(net.get_parameter(layer.reads).shape[0], -1)
        assert per[0].max() == 0
        assert per[1:].max() > 0
        assert weight.shape[1] % len(per) == 0


class Twice(nn.Module):
    """A layer that reads its own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.relu(self.first(x)))


CHANNELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "chain": (lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), torch.rand(4, 3)),
    "residual": (Residual, torch.rand(4, 1, 6, 6)),
    "applied twice": (Twice, torch.rand(4, 2)),
}


def channel_states(q: Quantized) -> Iterator[tuple[float, dict[str, Any]]]:
    """Every choice of widths of every channel, and its probability."""
    names, options = [], []
    for name, quantizer in q.named_sites():
        law = quantizer.probs().detach().double().reshape(-1, len(quantizer.ladder)).numpy()
        bits = quantizer.ladder.bits
        names.append((name, bool(quantizer.gates)))
        options.append(
            [
                (math.prod(law[g, k] for g, k in enumerate(rungs)), [bits[k] for k in rungs])
                for rungs in itertools.product(range(len(bits)), repeat=len(law))
            ]
        )
    for state in itertools.product(*options):
        widths = {n: np.array(b) if many else b[0] for (n, many), (_, b) in zip(names, state, strict=True)}
        yield math.prod(p for p, _ in state), widths | {n: widths[s] for n, s in q.sites.items()}


def pruned_by_hand(q: Quantized, widths: dict[str, Any]) -> float:
    """Sum over pairs of an output and an input channel, each with its share of the layer's products."""
    total = 0.0
    for layer in q.layers:
        outputs, inputs = np.atleast_1d(widths[layer.weight]), layer.shape[1]
        left = np.ones(inputs) if layer.reads is None else np.asarray(widths[layer.reads]) > 0
        left = np.repeat(left, inputs // len(left))
        share = layer.macs / (len(outputs) * inputs)
        total += sum(share * w * int(alive) * widths[layer.input or ""] for w in outputs for alive in left)
    return total


def channelled(name: str, tie: bool = False) -> Quantized:
    make, example = CHANNELS[name]
    torch.manual_seed(0)

    def plan(layer: Layer) -> Plan:
        book = ladder(0, 2) if layer.name in ("a", "b", "c", "out") else ladder(0, 1, 4)
        tied = "w" if tie and layer.shape == (2, 2) else None
        return Plan(book, ladder(2, signed=False), gates="channel", tie_weight=tied)

    return moved(probq.quantize(make(), example, plan=plan), 3)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("name", "tie"), [("chain", False), ("residual", False), ("applied twice", True)])
def test_pruned_channels_by_enumeration(name: str, tie: bool) -> None:
    q = channelled(name, tie)
    cost, expected, plain = costs.pruned_bops, 0.0, 0.0
    every = []
    for p, widths in channel_states(q):
        of_choice = pruned_by_hand(q, widths)
        assert costs.total(q.layers, widths, cost) == pytest.approx(of_choice)
        expected, plain = expected + p * of_choice, plain + p * costs.total(q.layers, widths)
        every.append((p, of_choice))
    assert float(q.expected_cost(q.cost_tables(cost)).detach()) == pytest.approx(expected, rel=1e-6)
    assert float(q.expected_cost(q.cost_tables()).detach()) == pytest.approx(plain, rel=1e-6)
    assert expected < 0.999 * plain
    for limit in np.quantile([c for _, c in every], [0.4]):
        budget = Budget(limit=float(limit) * (1 + 1e-9), cost=cost)
        a = q.mode(budget)
        best = max(p for p, c in every if c <= limit * (1 + 1e-9))
        assert a.cost(cost) <= limit * (1 + 1e-9)
        assert math.exp(a.log_prob) <= best * (1 + 1e-5)
        assert math.exp(a.log_prob + a.gap) >= best * (1 - 1e-5)
        assert math.exp(a.log_prob) >= 0.1 * best
        assert all(draw.cost(cost) <= limit * (1 + 1e-9) for draw in q.sample(5, budget, seed=0))
        exact = sum(p for p, c in every if c <= limit * (1 + 1e-9))
        assert probability_within(q, budget) == pytest.approx(exact, abs=5 * math.sqrt(0.25 / 2000))


def test_draws_with_pruned_channels_follow_the_conditional_law() -> None:
    q = channelled("chain")
    every = [(p, pruned_by_hand(q, widths)) for p, widths in channel_states(q)]
    limit = float(np.quantile([c for _, c in every], 0.6))
    inside = [(p, c) for p, c in every if c <= limit]
    mass = sum(p for p, _ in inside)
    mean = sum(p * c for p, c in inside) / mass
    sd = math.sqrt(sum(p * (c - mean) ** 2 for p, c in inside) / mass)
    drawn = [a.cost(costs.pruned_bops) for a in q.sample(300, Budget(limit=limit, cost=costs.pruned_bops), seed=0)]
    assert np.mean(drawn) == pytest.approx(mean, abs=4 * sd / math.sqrt(300))
    with pytest.raises(ProbqError, match=r"narrowest rungs cost 0|no widths were found|cannot be reached"):
        chain(same()).mode(Budget(limit=1e-6, cost=costs.pruned_bops))


def test_effective_bops_by_binary_digits() -> None:
    """The digits of each weight, counted in its written-out binary number; at most what `ebops` says."""
    q = chain(seed=2)
    for a in q.sample(6, seed=0):
        total = 0.0
        for layer in q.layers:
            quantizer, codes = q.quantizer(layer.weight), a.codes[layer.weight]
            grid = quantizer.ladder.rungs[quantizer.ladder.bits.index(a.widths[layer.weight])]
            digits = [len(f"{abs(grid.start + grid.step * int(c)):b}".strip("0")) for c in codes.reshape(-1)]
            total += layer.macs * np.mean(digits) * a.widths[layer.input or ""]
        assert probq.effective_bops(q, a) == pytest.approx(total)
        assert total <= a.cost(costs.ebops)


# ---- tables ----

ROWS = [("0", 4, 8, 1.0), ("0", 8, 8, 2.5), ("2", 4, 8, 0.5), ("2", 8, 8, 4.0)]
FRAME = pandas.DataFrame(ROWS, columns=["layer", "weight_bits", "input_bits", "cost"])


def tabled() -> Quantized:
    return chain(Plan(weight=ladder(4, 8), input=ladder(8, signed=False), network_input=ladder(8, signed=False)))


def test_a_table_from_a_frame_and_a_file(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "latency.csv", index=False)
    q, table = tabled(), costs.table(FRAME, "ns")
    assert costs.table(str(tmp_path / "latency.csv"), "ns") == table
    assert costs.full(q.layers, table) == 6.5  # the dearest row of each layer
    with32 = pandas.concat([FRAME, pandas.DataFrame([("0", 32, 32, 9.0)], columns=FRAME.columns)])
    assert costs.full(q.layers, costs.table(with32)) == 13
    a = q.mode(Budget(limit=3.0, cost=table))
    assert (a.cost(table), a.widths["0.weight"], a.widths["2.weight"]) == (3.0, 8, 4)
    np.testing.assert_array_equal(table(q.layers[0], np.array([4, 8, 4]), 8), [1.0, 2.5, 1.0])
    q.budget = Budget(limit=3.0, cost=table, probability=0.9)
    q.save(tmp_path / "q")
    again = probq.load(tmp_path / "q", nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)))
    assert again.budget == q.budget
    assert again.mode().widths == a.widths
    assert probq.table(q).attrs["cost"] == "ns"


@pytest.mark.parametrize("name", ["NA", "null", ""])
def test_layers_of_a_file_keep_their_names(name: str, tmp_path: Path) -> None:
    """Also those that mean "no value" elsewhere; a network that is one bare layer has the empty name."""
    FRAME[:2].assign(layer=name).to_csv(tmp_path / "latency.csv", index=False)
    assert costs.table(tmp_path / "latency.csv").entries == {(name, 4, 8): 1.0, (name, 8, 8): 2.5}


def test_a_cost_of_nothing_cannot_be_limited() -> None:
    q, nothing = tabled(), costs.table(FRAME.assign(cost=0.0), "nothing")
    for budget in (Budget(percent=50, cost=nothing), Budget(limit=1, cost=nothing)):
        with pytest.raises(ProbqError, match="costs 0 nothing, so there is nothing to limit"):
            probq.fit(q, data(), budget, 1, progress=False)


class Factors(nn.Module):
    """Users and items; no layer multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(6, 3), nn.Embedding(5, 3)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return (self.users(user) + self.items(item)).sum(-1)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_network_without_multiplications_is_fitted_and_limited_in_storage() -> None:
    torch.manual_seed(0)
    net, pairs = Factors(), (torch.randint(0, 6, (40,)), torch.randint(0, 5, (40,)))
    q = probq.quantize(net, pairs)
    data = [(pairs, net(*pairs).detach())] * 5
    with pytest.raises(ProbqError, match="nothing to limit"):
        probq.fit(q, data, Budget(percent=3), epochs=1, progress=False)
    history = probq.fit(q, data, epochs=1, progress=False)
    assert history.steps[-1].percent == q.mode().percent() == probq.table(q).attrs["expected cost percent"] == 0
    pyplot.close(probq.plot.cost(q).figure)
    budget = Budget(percent=10, cost=costs.storage)
    probq.fit(q, data, budget, epochs=40, progress=False)
    stored = sum(layer.weights * q.mode().widths[layer.weight] for layer in q.layers)
    assert stored <= 0.1 * sum(32 * layer.weights for layer in q.layers)


def test_a_limit_on_the_largest_layer_is_named_where_it_bars_what_another_needs() -> None:
    q = chain(Plan(weight=ladder(4), input=ladder(2, 8, signed=False), network_input=ladder(2, signed=False)))

    def hurried(layer: Layer, weight_bits: float, input_bits: float) -> float:
        return 1 / input_bits

    largest, fast = Budget(limit=12, cost=costs.largest_activation), Budget(limit=0.7, cost=hurried)
    assert q.mode(fast).widths["2.input"] == 8
    with pytest.raises(ProbqError, match=r"0.7 hurried .*: the cheapest widths within 12 largest_activation cost 1 "):
        q.mode([fast, largest])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.drop(columns="cost"), "no column 'cost'"),
        (lambda f: f.replace(2.5, -2.5), r"gives -2.5 for layer 0 at 8 x 8 bits"),
        (lambda f: f.replace(2.5, math.nan), r"gives nan for layer 0 at 8 x 8 bits"),
        (lambda f: f.assign(weight_bits=[4, 8.5, 4, 8]), r"names layer 0 at 8.5 x 8 bits; widths are whole"),
        (lambda f: f.assign(input_bits=[8, math.inf, 8, 8]), r"widths are whole"),
        (lambda f: pandas.concat([f, f[:1]]), r"two rows for layer 0 at 4 x 8 bits"),
        (lambda f: f[:0], "has no rows"),
    ],
)
def test_tables_that_are_refused(change: Any, sentence: str) -> None:
    with pytest.raises(ProbqError, match=sentence):
        costs.table(change(FRAME))


def test_widths_that_a_table_lacks_are_named() -> None:
    q = tabled()
    with pytest.raises(ProbqError, match="no row for layer 2 at 8 x 8 bits"):
        q.mode(Budget(limit=3, cost=costs.table(FRAME[:3])))
    with pytest.raises(ProbqError, match="no row for layer 2 at 4 x 8, 8 x 8 bits"):
        q.mode(Budget(limit=3, cost=costs.table(FRAME[:2])))
    for wrong in (3, "nowhere.csv"):
        with pytest.raises(ProbqError, match="CSV"):
            costs.table(wrong)


# ---- ties ----


def test_tied_widths_are_one_site_one_row_and_one_draw(tmp_path: Path) -> None:
    q = chain(same(tie_weight="all"))
    x, y = data()[0]
    for part in (q.model, q.guide):
        sites = pyro.poutine.trace(part).get_trace(x, y).nodes
        assert [name for name in sites if name.endswith(".width")] == [
            "0.weight.width",
            "0.input.width",
            "2.input.width",
        ]
    frame = probq.table(q)
    assert list(frame.index) == ["0.weight", "0.input", "2.input"]
    assert frame["layer"]["0.weight"] == "0, 2"
    assert frame["MACs"]["0.weight"] == 5 * 3 + 3 * 3
    assert all(a.widths["0.weight"] == a.widths["2.weight"] for a in (q.mode(), *q.sample(20, seed=0)))
    drawn = width_draws.draw_widths(q, 50, 0)[1]
    np.testing.assert_array_equal(drawn["0.weight"], drawn["2.weight"])
    assert sum(p.shape == q.quantizer("0.weight").logits.shape for n, p in q.named_parameters() if "logits" in n) == 2
    q.save(tmp_path / "q")
    again = probq.load(tmp_path / "q", nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)))
    assert again.sites == q.sites
    assert again.quantizer("0.weight").logits is again.quantizer("2.weight").logits
    assert again.mode().widths == q.mode().widths
    fixed = q.at(q.mode())
    assert fixed.mode().widths == q.mode().widths
    with pytest.raises(ProbqError, match="they are tied"):
        fix_widths(q, {**q.mode().widths, "0.weight": 1, "2.weight": 4})


def test_the_elbo_with_tied_widths_is_the_enumerated_one() -> None:
    """One divergence for one width: the mean over the guide's draws is the sum over all widths and codes."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2))
    book = ladder(1, 2)
    plan = Plan(book, book, ladder(2), tie_weight="t", tie_input="t", codes=2, spread=0.4)
    q = moved(probq.quantize(net, torch.randn(3, 1), plan=plan), 1).eval()
    x, y = torch.randn(3, 1), torch.tensor([0, 1, 1])
    q.likelihood = probq.likelihoods.categorical
    assert set(q.sites.items()) == {("1.weight", "0.weight"), ("1.input", "0.weight")}
    exact = probq.testing.enumerate_elbo(q, x, y)
    torch.manual_seed(0)
    elbo = pyro.infer.TraceMeanField_ELBO()
    with torch.no_grad():
        drawn = [-float(elbo.differentiable_loss(q.model, q.guide, x, y)) for _ in range(120)]
    assert np.mean(drawn) == pytest.approx(exact, abs=4 * np.std(drawn) / math.sqrt(len(drawn)))


def test_ties_that_cannot_be_are_refused() -> None:
    def ladders(layer: Layer) -> Plan:
        return Plan(weight=ladder(1, 2) if layer.name == "0" else ladder(1, 4), tie_weight="t")

    def gates(layer: Layer) -> Plan:
        return Plan(weight=ladder(1, 2), gates="channel" if layer.name == "0" else "tensor", tie_weight="t")

    with pytest.raises(ProbqError, match=r"'t' joins 0.weight with widths \(1, 2\) and 2.weight with widths \(1, 4\)"):
        chain(ladders)
    with pytest.raises(ProbqError, match=r"'t' joins 0.weight and 2.weight, whose gates"):
        chain(gates)
    for wrong in ("", 3):
        with pytest.raises(ProbqError, match="takes a name"):
            Plan(tie_weight=wrong)  # type: ignore[arg-type]


# ---- widths required and forbidden ----


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_required_and_forbidden_widths_everywhere(tmp_path: Path) -> None:
    """One rung requires a width, a rung left out is forbidden, in training, decisions, files and integers."""

    def plan(layer: Layer) -> Plan:
        return Plan(ladder(4), ladder(4, signed=False)) if layer.first else Plan(ladder(1, 8), ladder(2, signed=False))

    q = chain(plan)
    probq.fit(q, data(), [Budget(percent=3.0), Budget(limit=200, cost=costs.storage)], 3, progress=False, seed=0)
    for a in (q.mode(), *q.sample(5, seed=0)):
        assert (a.widths["0.weight"], a.widths["2.input"]) == (4, 2)
        assert a.widths["2.weight"] in (1, 8)
    x = torch.rand(20, 5)
    model = probq.lower(q, q.mode())
    np.testing.assert_array_equal(model(x.numpy()) * model.output_scale, q(x).detach().double().numpy())
    assert probq.table(q)["entropy"]["0.weight"] == 0
    everything = chain(lambda layer: Plan(ladder(4), ladder(2, signed=False)))
    probq.fit(everything, data(), [Budget(percent=3.0)], 1, progress=False, seed=0)
    assert everything.mode().widths == {"0.weight": 4, "2.weight": 4, "0.input": 8, "2.input": 2}
    with pytest.raises(ProbqError, match=r"fixed and cost|cannot be reached"):
        everything.mode(Budget(limit=1, cost=costs.storage))
