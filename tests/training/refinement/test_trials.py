"""Trials: the best few choices are tuned alike, each from where the search ended, and the best after that is taken."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import probq
from probq import Budget, Plan, ProbqError, Quantized, Rates
from probq.codebooks import ladder
from probq.decisions.within_budget import with_widths
from probq.training.refinement.candidates import find_candidates, uniform_states
from probq.training.refinement.decide import drawn_choices, make_search
from probq.training.refinement.evidence.opinions import Experts
from probq.training.refinement.evidence.validation_loss import ValidationLoss
from probq.training.refinement.experts.criteria import ask_criteria
from probq.training.refinement.experts.drawn_widths import train_at_drawn_widths
from probq.training.refinement.favourites import measure_favourites
from probq.training.refinement.trials import Trials, steps_per_trial
from probq.training.svi.course import Course
from probq.utils.batches import Batches

XS = torch.rand(80, 4, generator=torch.Generator().manual_seed(1))
YS = (XS.sum(1) > 2).long() + (XS[:, 0] > 0.5)
PAIRS = [(XS[k : k + 16], YS[k : k + 16]) for k in range(0, 48, 16)]
HELD = [(XS[48:], YS[48:])]
BUDGET = Budget(percent=1.5)
HOW: dict[str, Any] = {"rates": Rates(weights=1e-2), "seed": 0}
NETWORKS = 70  # that are measured, more than there are choices


def network(norm: bool = False, dropout: float = 0.0) -> Quantized:
    torch.manual_seed(0)
    parts = [nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)]
    return probq.quantize(nn.Sequential(*parts).eval(), XS, Plan(weight=ladder(1, 2, 4, 8), profile="dyadic"))


def only_search(q: Quantized, epochs: int) -> None:
    """Make the steps of a fit that learn widths, half of them."""
    fit = probq.steps(q, PAIRS, BUDGET, epochs, search=0.5, **HOW)
    assert {record.phase for record in itertools.islice(fit, epochs // 2 * len(PAIRS))} == {"search"}
    fit.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a few steps, so that small fits make them."""
    monkeypatch.setattr("probq.training.refinement.trials.FEWEST", 1)


@pytest.mark.parametrize(
    ("tuning", "number", "each"), [(3200, 4, 200), (3190, 4, 0), (10000, 4, 625), (1600, 2, 200), (10000, 1, 0)]
)
def test_trials_take_a_quarter_of_the_tuning_or_are_not_made(tuning: int, number: int, each: int) -> None:
    assert steps_per_trial(tuning, number) == each


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("norm", "number"), [(False, 4), (True, 2)])
def test_a_fit_takes_the_best_of_trials_made_by_hand(norm: bool, number: int) -> None:
    q, searched = network(norm), network(norm)
    options: dict[str, Any] = {"search": 0.5, "trials": number, "evaluations": NETWORKS}
    records = list(probq.steps(q, PAIRS, BUDGET, 32, validation=HELD, **options, **HOW))
    only_search(searched, 32)
    held, data = Batches(HELD, q.device), Batches(PAIRS, q.device)
    choices = drawn_choices(searched, BUDGET, 400)
    own = train_at_drawn_widths(searched, PAIRS, drawn_choices(searched, BUDGET, 48), HOW["rates"], progress=False)
    search = make_search(searched, BUDGET, ValidationLoss(own, held, data, None), NETWORKS)
    opinions = ask_criteria(own, PAIRS, search.space, NETWORKS, progress=False)
    experts = Experts(opinions, search.space.spending([search.space.state(w) for w in choices]))
    search.run()
    measure_favourites(searched, search, BUDGET, experts=experts)
    widths = [search.space.widths(state) for state in find_candidates(searched, search, number, experts)]
    epochs = steps_per_trial(48, number) // 3
    losses, networks = [], []
    for own in widths:
        tuned = searched.at(with_widths(searched, own, BUDGET))
        list(probq.steps(tuned, PAIRS, None, epochs, **HOW))
        networks.append(tuned)
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(tuned(XS[48:]), YS[48:])))
    best = min(range(number), key=losses.__getitem__)
    assert q.mode().widths == widths[best]
    list(probq.steps(networks[best], PAIRS, None, 12, **HOW))
    assert torch.equal(q(XS), networks[best](XS))
    assert [r.phase for r in records] == ["search"] * 48 + ["trial"] * 12 + ["tune"] * 36
    assert [r.step for r in records] == list(range(96))


@pytest.mark.parametrize("percent", [0.5, 0.6, 0.8, 3.0, 100.0])
def test_uniform_contenders_are_the_widest_within_the_limit(percent: float) -> None:
    q, limit = network(), Budget(percent=percent).absolute(network().layers)
    space = make_search(q, Budget(percent=percent), lambda widths: 0.0, 1).space

    def cost(w: int, a: int) -> int:
        return 24 * w * 8 + 18 * w * a  # the network's own input stays at 8 bits

    pairs = [p for p in itertools.product((1, 2, 4, 8), repeat=2) if cost(*p) <= limit]
    widest = [(w, a) for w, a in pairs if not any((v, b) != (w, a) and v >= w and b >= a for v, b in pairs)]
    found = [space.widths(state) for state in uniform_states(q, space)]
    assert len(found) == len(widest)
    for own, (w, a) in zip(found, widest, strict=True):
        assert min(own["0.weight"], own["3.weight"]) >= w
        assert own["3.input"] >= a
        total = 24 * own["0.weight"] * 8 + 18 * own["3.weight"] * own["3.input"]
        assert total <= limit
        wider = [{**own, name: 2 * own[name]} for name in own if name != "0.input" and own[name] < 8]
        assert all(24 * o["0.weight"] * 8 + 18 * o["3.weight"] * o["3.input"] > limit for o in wider)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_contenders_are_what_was_measured_best_and_uniform_widths(number: int) -> None:
    q, held, data = network(), Batches(HELD, torch.device("cpu")), Batches(PAIRS, torch.device("cpu"))
    q.budget = BUDGET
    search = make_search(q, BUDGET, ValidationLoss(q, held, data, None), 100)
    search.run()
    found = [search.space.widths(state) for state in find_candidates(q, search, number)]
    ranked = [search.space.widths(state) for state in search.ranked]
    plain = [search.space.widths(state) for state in uniform_states(q, search.space)]
    assert len(found) == number
    assert found[: number - number // 2] == ranked[: number - number // 2]
    assert len({tuple(widths.items()) for widths in found}) == number
    rest = [w for w in found if w not in ranked[:number]]
    assert all(widths in plain for widths in rest)
    assert number < 4 or any(widths in plain for widths in found)


def test_widths_of_channels_have_no_uniform_contender() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    q = probq.quantize(net, XS, Plan(weight=ladder(1, 2, 4), gates="channel"))
    assert uniform_states(q, make_search(q, BUDGET, lambda widths: 0.0, 1).space) == []


@pytest.mark.parametrize(
    ("losses", "best"), [([3.0, 1.0, 2.0], 1), ([1.0, 1.0, 2.0], 0), ([float("inf"), 4.0, 5.0], 1)]
)
def test_every_trial_begins_alike_and_the_best_goes_on(losses: list[float], best: int) -> None:
    q = network()
    before = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    widths = [{"0.weight": w, "3.weight": 1, "0.input": 8, "3.input": 2} for w in (1, 2, 4)]
    began: list[tuple[int, float, bool]] = []

    class Tuning:
        def loop(self, own: Quantized, trial: bool = False) -> Quantized:
            own.batches = None
            return own

        def tune(self, own: Quantized, numbers: range, course: Course, parts: Any) -> Iterator[probq.Step]:
            alike = all(torch.equal(own.state_dict()[name], tensor) for name, tensor in before.items())
            untouched = all(torch.equal(q.state_dict()[name], tensor) for name, tensor in before.items())
            free = all(quantizer.fixed is None for _, quantizer in q.named_quantizers())
            began.append((own.mode().widths["0.weight"], float(torch.rand(())), alike and untouched and free))
            own.folded = True
            with torch.no_grad():
                own.net[0].weight += len(began)
            yield from (probq.Step(n, 0, "tune", 0.0, 0.0, 0.0, 0.0, None, 0.0) for n in numbers)

    trials = Trials(q, widths, lambda own: losses[len(began) - 1], Course([])).run(Tuning(), range(10, 16), {})  # type: ignore[arg-type]
    assert [(record.step, record.phase) for record in trials] == [(n, "trial") for n in range(10, 16)]
    assert [w for w, _, _ in began] == [1, 2, 4]
    assert len({drawn for _, drawn, _ in began}) == 1
    assert all(alike for _, _, alike in began)
    assert q.mode().widths == widths[best]
    assert torch.equal(q.net[0].weight, before["net.0.weight"] + best + 1)
    assert q.folded


@pytest.mark.usefixtures("short")
def test_one_trial_or_none_tunes_what_was_measured_best() -> None:
    fits = [network(), network()]
    for q, trials in zip(fits, (0, 1), strict=True):
        history = probq.fit(q, PAIRS, BUDGET, 8, validation=HELD, trials=trials, progress=False, **HOW)
        assert set(history.to_frame().phase) == {"search", "tune"}
    assert all(torch.equal(a, b) for a, b in zip(*(q.state_dict().values() for q in fits), strict=True))
    assert fits[0].mode() == fits[1].mode()


@pytest.mark.usefixtures("short")
def test_the_history_of_a_fit_with_trials_is_whole(tmp_path: Path) -> None:
    q, path = network(dropout=0.2), tmp_path / "q.safetensors"
    history = probq.fit(q, PAIRS, BUDGET, 20, search=0.5, validation=HELD, progress=False, checkpoint=path, **HOW)
    assert list(dict.fromkeys(history.to_frame().phase)) == ["search", "trial", "tune"]
    assert len(history.steps) == 60
    assert len(history.validation) == 20
    labels = [text.get_text() for text in history.plot().get_legend().get_texts()]
    assert labels[-2:] == ["trials of the best widths", "fine-tuning at decided widths"]
    assert probq.load(path, q.net).mode() == q.mode()
    assert q.mode().cost() <= BUDGET.absolute(q.layers)


@pytest.mark.usefixtures("short")
def test_a_fit_stopped_in_a_trial_leaves_the_posterior_of_the_search() -> None:
    q, searched = network(), network()
    for record in probq.steps(q, PAIRS, BUDGET, 20, search=0.5, validation=HELD, **HOW):
        if record.phase == "trial":
            break
    only_search(searched, 20)
    assert q.mode() == searched.mode()
    assert torch.equal(q(XS), searched(XS))


def test_a_number_of_trials_is_no_negative_one() -> None:
    with pytest.raises(ProbqError, match="trials must be an integer of 0 or more"):
        probq.fit(network(), PAIRS, trials=-1)
