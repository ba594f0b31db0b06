"""Refined decisions: exact where all can be measured, a local optimum where not, never over the budget."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Budget, Plan, ProbqError, Quantized, Rates
from probq import cost as costs
from probq.codebooks import ladder
from probq.decisions.allocation.most_probable import most_probable_first
from probq.decisions.constrained_posterior import width_problem
from probq.testing import width_states
from probq.training.refinement.best_first import predict_losses
from probq.training.refinement.decide import make_search
from probq.training.refinement.evidence.space import State, StateCost, WidthSpace

XS = torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
YS = (XS.sum(1) > 2).long() + (XS[:, 0] > 0.5)
PAIRS = [(XS[k : k + 16], YS[k : k + 16]) for k in range(0, 40, 16)]


def network(layers: int = 2, norm: bool = False, gates: str = "tensor", seed: int = 0) -> Quantized:
    """Layers of 4 channels with four rungs each, gates away from their start."""
    torch.manual_seed(seed)
    parts = [m for _ in range(layers) for m in (nn.Linear(4, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.ReLU())]
    plan = Plan(weight=ladder(1, 2, 4, 8), input=ladder(1, 2, 4, 8, signed=False), gates=gates)
    q = probq.quantize(nn.Sequential(*parts[:-1]).eval(), XS, plan)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.normal_()
    return q


def random_loss(seed: int) -> Callable[[Mapping[str, Any]], float]:
    """A loss without any structure, the same for the same widths."""
    return lambda widths: float(np.random.default_rng([seed, *map(int, widths.values())]).random())


def every(q: Quantized) -> list[tuple[float, float, dict[str, int]]]:
    """Log-probability, BOPs by hand and widths of all choices, by gates, or by the energy that was measured."""
    result = []
    for rungs, p in width_states(q):
        bits = {name: q.quantizer(name).ladder.bits[k] for name, k in rungs.items()}
        log_prob = math.log(p) if q.energy is None else -q.energy(bits)
        result.append((log_prob, sum(m.macs * bits[m.weight] * bits[m.input or ""] for m in q.layers), bits))
    total = float(np.logaddexp.reduce([log_prob for log_prob, _, _ in result]))
    return [(log_prob - total, cost, bits) for log_prob, cost, bits in result]


@pytest.mark.parametrize("percent", [0.5, 1.0, 3.0, 100.0])
def test_most_probable_first_is_the_enumerated_order(percent: float) -> None:
    q = network()
    limit = Budget(percent=percent).absolute(q.layers)
    problem = width_problem(q)
    found = list(itertools.islice(most_probable_first(problem, limit), 25))
    by_hand = sorted((p for p, cost, _ in every(q) if cost <= limit), reverse=True)
    assert [problem.value(choice)[0] for choice in found] == pytest.approx(by_hand[:25], abs=1e-5)
    assert len({str(problem.widths(choice)) for choice in found}) == len(found)
    assert all(problem.value(choice)[1] <= limit for choice in found)


def test_most_probable_first_ends_when_all_were_given() -> None:
    q = network()
    limit = sorted(cost for _, cost, _ in every(q))[2] + 0.5
    found = {str(width_problem(q).widths(c)) for c in most_probable_first(width_problem(q), limit)}
    assert len(found) == sum(cost <= limit for _, cost, _ in every(q))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("percent", [0.6, 2.0, 100.0])
def test_decisions_of_three_quantizers_are_the_enumerated_best(seed: int, percent: float) -> None:
    q, loss, budget = network(seed=seed), random_loss(seed), Budget(percent=percent)
    search = make_search(q, budget, loss, evaluations=100)
    found = search.space.widths(search.run())
    feasible = [widths for _, cost, widths in every(q) if cost <= budget.absolute(q.layers)]
    assert found == min(feasible, key=loss)
    assert len(search.losses) == len(feasible) <= 64


def steps(space: WidthSpace, state: State, keeps: Callable[[State], bool]) -> set[State]:
    """The neighbourhood, by looking at all states one or two quantizers away."""
    result = set()
    sizes = [len(options) for options in space.options]
    for u in range(len(sizes)):
        for by in (1, -1):
            one = (*state[:u], state[u] + by, *state[u + 1 :])
            if not 0 <= one[u] < sizes[u]:
                continue
            if keeps(one):
                result.add(one)
            for v in range(len(sizes) if by == 1 and not keeps(one) else 0):
                lower = [(*one[:v], k, *one[v + 1 :]) for k in range(one[v])]
                result |= {max((s for s in lower if keeps(s)), default=state)} if v != u else set()
    return result - {state}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("seed", range(2))
def test_larger_problems_end_where_no_step_helps(seed: int) -> None:
    q, budget, measured = network(4, seed=seed), Budget(percent=1.5), []
    of_widths = random_loss(seed)

    def loss(widths: Mapping[str, Any]) -> float:
        measured.append(dict(widths))
        smooth = sum(0.3 * 2.0 ** -int(bits) for bits in widths.values())
        return smooth + 0.1 * of_widths(widths)

    search = make_search(q, budget, loss, evaluations=400)
    best, limit = search.run(), budget.absolute(q.layers)

    def keeps(state: State) -> bool:
        bits = search.space.widths(state)
        return bool(sum(m.macs * bits[m.weight] * bits[m.input or ""] for m in q.layers) <= limit)

    assert all(keeps(state) for state in search.losses)
    assert len(measured) == len(search.losses) < 400
    assert len({str(widths) for widths in measured}) == len(measured)
    around = steps(search.space, best, keeps)
    assert around == set(search.space.neighbours(best))
    assert around <= set(search.losses)
    assert search.losses[best] == min(search.losses.values()) < search.losses[search.starts[0]]
    again = make_search(network(4, seed=seed), budget, loss, evaluations=400)
    again.run()
    assert list(again.losses.items()) == list(search.losses.items())


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_handful_of_evaluations_is_kept_and_starts_at_the_mode() -> None:
    q, budget = network(4), Budget(percent=1.5)
    search = make_search(q, budget, random_loss(0), evaluations=7)
    search.run()
    assert len(search.losses) == 6  # the last one is kept for the favourite of what was measured
    assert search.space.widths(next(iter(search.losses))) == q.mode(budget).widths


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_local_steps_can_miss_the_best() -> None:
    """Two quantizers that only help together: the documented limit of single steps."""
    q = network(4)
    rung = q.mode().widths
    names = [n for n in q.weight_names if rung[n] < 8][:2]
    better = {n: q.quantizer(n).ladder.bits[q.quantizer(n).ladder.bits.index(rung[n]) + 1] for n in names}

    def loss(widths: Mapping[str, Any]) -> float:
        moved = sum(widths[n] != rung[n] for n in rung)
        return 0.0 if all(widths[n] == better.get(n, rung[n]) for n in rung) else 1.0 + moved

    search = make_search(q, Budget(percent=100), loss, evaluations=100)
    assert search.losses[search.run()] == loss(rung) == 1
    assert len(search.losses) < 100
    assert loss({**rung, **better}) == 0


def test_what_widths_did_in_one_network_is_expected_in_others() -> None:
    """An additive loss: with both single steps measured, their pair is known."""
    space = WidthSpace(("a", "b"), ((1, 2), (1, 2)), (np.zeros(2), np.zeros(2)), ())
    guess, spread = predict_losses(space, [(0, 0), (1, 0), (0, 1)], np.array([5.0, 3.0, 4.5]), [(1, 1)])
    assert guess[0] == pytest.approx(3.0 + 4.5 - 5.0, abs=1e-3)
    assert spread == pytest.approx(np.std([5.0, 3.0, 4.5]))


def test_before_anything_else_is_known_the_posterior_orders() -> None:
    space = WidthSpace(("a",), ((1, 2, 4),), (np.log([0.5, 0.2, 0.3]),), ())
    guess, _ = predict_losses(space, [(0,)], np.array([1.0]), [(1,), (2,)])
    assert guess[0] - guess[1] == pytest.approx(math.log(0.3 / 0.2))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_the_measured_loss_is_that_of_what_ships(norm: bool, gates: str) -> None:
    q, budget = network(2, norm, gates), Budget(percent=2.0)
    first = q.mode(budget)
    a = probq.decide(q, budget, PAIRS, batches=PAIRS, evaluations=30, progress=False)
    unmeasured, first = first, q.mode(budget)
    assert (unmeasured.log_prob == first.log_prob) == (gates != "tensor")  # else it knows what was measured
    assert a.cost() <= budget.absolute(q.layers) == a.limit
    assert a.loss == pytest.approx(float(F.cross_entropy(q.at(a)(XS), YS)), rel=1e-4)
    assert a.log_prob <= first.log_prob + 1e-9
    assert a.gap == pytest.approx(first.log_prob + first.gap - a.log_prob, abs=1e-9)
    if gates == "tensor":
        assert a.log_prob == pytest.approx(next(p for p, _, widths in every(q) if widths == a.widths), abs=1e-5)
        assert math.isclose(a.log_prob, first.log_prob) == (a.widths == first.widths)
    else:
        for name in q.weight_names:  # all channels moved alike, as far as the ladder goes
            before, after = (np.searchsorted(q.quantizer(name).ladder.bits, w.widths[name]) for w in (first, a))
            assert any(np.array_equal(after, np.clip(before + by, 0, 3)) for by in range(-3, 4))
    if not norm:
        assert a.loss <= float(F.cross_entropy(q.at(first)(XS), YS)) + 1e-6


def test_only_so_many_examples_are_looked_at() -> None:
    q, budget = network(), Budget(percent=2.0)
    a = probq.decide(q, budget, PAIRS, examples=19, progress=False)
    assert a.loss == pytest.approx(float(F.cross_entropy(q.at(a)(XS[:19]), YS[:19])), rel=1e-4)


def test_without_a_budget_every_choice_may_be_taken() -> None:
    q = network()
    a = probq.decide(q, None, PAIRS, progress=False)
    losses = [float(F.cross_entropy(_at(q, widths)(XS), YS)) for _, _, widths in every(q)]
    assert a.loss == pytest.approx(min(losses), rel=1e-5)
    assert a.limit is None


def _at(q: Quantized, widths: Mapping[str, Any]) -> Quantized:
    from probq.decisions.within_budget import with_widths

    return q.at(with_widths(q, dict(widths), None))


class Interrupted(nn.Module):
    """A linear layer that is interrupted at a given call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(4, 3), -1

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.layer(x)


@pytest.mark.parametrize("calls", [1, 4])
def test_an_interrupt_gives_the_best_so_far(calls: int) -> None:
    q, budget = probq.quantize(Interrupted().eval(), XS), Budget(percent=7)
    q.net.left = calls
    with pytest.warns(UserWarning, match=rf"interrupted after {calls - 1} of 100 evaluations"):
        a = probq.decide(q, budget, [(XS, YS)], progress=False)
    assert a.cost() <= budget.absolute(q.layers)
    assert (a.loss is None) == (calls == 1)
    if calls == 1:
        assert a.widths == q.mode(budget).widths


class Stopped:
    """Batches whose reading is interrupted at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(3):
            if number == self.at:
                raise KeyboardInterrupt
            yield XS, YS


@pytest.mark.parametrize("data", ["validation", "batches"])
@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupt_while_data_is_read_gives_the_mode(data: str, at: int) -> None:
    q, budget = network(norm=True), Budget(percent=1)
    with pytest.warns(UserWarning, match="interrupted after 0 of 100 evaluations"):
        a = probq.decide(q, budget, **{"validation": PAIRS, data: Stopped(at)}, progress=False)
    assert (a.widths, a.loss) == (q.mode(budget).widths, None)


def test_validation_that_cannot_be_measured_is_refused() -> None:
    q, budget = network(), Budget(percent=1)
    for wrong, sentence in (
        ((), "the validation data holds no batch; give it one"),
        (None, "the validation data is an iterable of"),
        ([(XS, YS), (XS[:0], YS[:0])], "batch 1 of the validation data holds no example"),
        ([(XS, YS[0])], "batch 0 of the validation data holds no example"),
        ([(XS, YS + 9)], "validation: the data does not fit the likelihood: a target is 11"),
    ):
        with pytest.raises(ProbqError, match=sentence):
            probq.decide(q, budget, wrong, progress=False)  # type: ignore[arg-type]


def test_fixed_widths_are_returned_and_mistakes_refused() -> None:
    q = network()
    fixed = q.at(q.mode(Budget(percent=1)))
    assert probq.decide(fixed, None, PAIRS).widths == q.mode(Budget(percent=1)).widths
    with pytest.raises(ProbqError, match="holds no batch"):
        probq.decide(q, Budget(percent=1))
    with pytest.raises(ProbqError, match="cannot be reached"):
        probq.decide(q, Budget(limit=1), PAIRS)
    with pytest.raises(ProbqError, match="evaluations must be an integer of 1 or more"):
        probq.decide(q, Budget(percent=1), PAIRS, evaluations=0)
    with pytest.raises(ProbqError, match="examples must be an integer of 1 or more"):
        probq.decide(q, Budget(percent=1), PAIRS, examples=0)
    with pytest.raises(ProbqError, match="evaluations must be an integer of 0 or more"):
        probq.fit(q, PAIRS, evaluations=-1)


def fitted(q: Quantized, **options: Any) -> probq.History:
    return probq.fit(
        q, PAIRS, Budget(percent=1.5), 4, rates=Rates(weights=1e-2), seed=0, progress=False, validation=PAIRS, **options
    )


@pytest.mark.parametrize("norm", [False, True])
def test_what_a_fit_measured_is_what_it_tunes_and_what_ships(norm: bool, tmp_path: Path) -> None:
    q, budget = network(2, norm), Budget(percent=1.5)
    settled = []
    for step in probq.steps(q, PAIRS, budget, 4, rates=Rates(weights=1e-2), seed=0, validation=PAIRS, progress=False):
        if step.phase == "tune":
            settled.append(q.mode().widths)
    a, pure = q.mode(), q.mode(measured=False)
    assert settled
    assert all(widths == a.widths for widths in settled)
    assert a.gap == pytest.approx(pure.log_prob - a.log_prob)
    assert a.cost() <= budget.absolute(q.layers)
    assert pure.log_prob == pytest.approx(max(p for p, c, _ in every(q) if c <= budget.absolute(q.layers)), abs=1e-5)
    assert q.mode(budget) == a
    assert q.mode(Budget(percent=2)).widths == q.mode(Budget(percent=2), measured=False).widths
    assert torch.equal(q(XS), q.at(a)(XS))
    assert probq.lower(q).metadata["widths"] == a.widths
    assert probq.table(q)["mode"].to_dict() == a.widths
    q.save(tmp_path / "q.safetensors")
    again = probq.load(tmp_path / "q.safetensors", q.net)
    assert again.mode() == a
    assert again.mode(measured=False) == pure


def test_without_evaluations_or_validation_the_mode_is_tuned() -> None:
    q, other = network(), network()
    fitted(q, evaluations=0)
    probq.fit(other, PAIRS, Budget(percent=1.5), 4, rates=Rates(weights=1e-2), seed=0, progress=False)
    for fit in (q, other):
        assert fit.mode() == fit.mode(measured=False)
    assert all(torch.equal(a, b) for a, b in zip(q.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_new_fit_forgets_what_the_last_one_measured() -> None:
    q = network()
    fitted(q)
    for _, quantizer in q.named_quantizers():
        quantizer.tuned.zero_()
    assert q.mode().widths != q.mode(measured=False).widths
    fitted(q, evaluations=0)
    assert q.mode() == q.mode(measured=False)


def test_an_interrupt_of_a_fit_is_not_swallowed() -> None:
    q = probq.quantize(Interrupted().eval(), XS)
    q.net.left = 1 + 3 * 2 + 12  # the search's steps, then in the midst of measuring
    with pytest.raises(KeyboardInterrupt):
        probq.fit(q, PAIRS, Budget(percent=2), 4, search=0.5, progress=False, validation=PAIRS, seed=0)
    assert all(quantizer.fixed is None for _, quantizer in q.named_quantizers())


@pytest.mark.parametrize(
    "cost", [costs.bops, costs.pruned_bops, costs.storage, costs.largest_activation], ids=costs.name
)
@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
@pytest.mark.parametrize("tied", [False, True])
def test_costs_looked_up_are_those_of_the_widths(cost: costs.Cost, gates: str, tied: bool) -> None:
    wide = ladder(0, 2, 5)
    plan = Plan(weight=wide, input=wide, network_input=wide, gates=gates, tie_input="all" if tied else None)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    q = probq.quantize(net, torch.rand(8, 4), plan=plan)
    space = make_search(q, Budget(percent=100), lambda widths: 0.0, 1).space
    sizes = [len(options) for options in space.options]
    states = np.random.default_rng(0).integers(0, sizes, (40, len(sizes)))
    expected = [costs.total(q.layers, space.widths(tuple(state)), cost) for state in states.tolist()]
    assert StateCost(q.layers, cost, space)(states).tolist() == expected
    assert len(set(expected)) > 1


def test_work_grows_with_the_network_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of all weights are asked for a fixed number of times, however many weights there are."""
    counted: dict[int, int] = {}
    for layers in (3, 9):
        parts = [part for _ in range(layers - 1) for part in (nn.Linear(4, 4), nn.ReLU())]
        q = probq.quantize(nn.Sequential(*parts, nn.Linear(4, 2)), torch.rand(8, 4))
        asked = []
        with monkeypatch.context() as patch:
            own = Quantized.rung
            patch.setattr(Quantized, "rung", lambda *args, own=own, asked=asked: (asked.append(1), own(*args))[1])
            probq.lower(q)
        counted[layers] = len(asked)
    assert counted[9] == 3 * counted[3]
