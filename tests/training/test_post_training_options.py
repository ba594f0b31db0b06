"""Plans that leave nothing to allocate, progress bars of given functions, and batches without examples."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import probq
from probq import Budget, ProbqError, Quantized
from probq.training.ptq.input_scales import set_input_scales
from probq.utils.batches import Batches

X = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
FIXED = probq.uniform(2, 4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def refuse(*args: Any, **options: Any) -> Any:
    raise AssertionError("there is nothing to measure")


@pytest.mark.parametrize("budget", [None, [], Budget(percent=5)])
def test_a_plan_of_fixed_widths_is_decided_and_rounded(budget: Any) -> None:
    """By hand: the only widths, at scales of the data."""
    q = probq.post_training(network(), [X], budget, plan=FIXED, criterion=refuse, rounding=[], progress=False)
    by_hand = probq.quantize(network(), X, FIXED)
    set_input_scales(by_hand, Batches([(X, torch.zeros(64))], by_hand.device), targets=False)
    by_hand = by_hand.at(by_hand.mode())
    assert q.mode() == by_hand.mode()
    assert torch.equal(q(X), by_hand(X))
    assert q.energy is None
    assert q.budget == (budget or None)
    probq.fit(q, [(X, torch.arange(64) % 3)], epochs=1, progress=False)


def test_fixed_widths_get_the_best_of_all_ways_of_rounding() -> None:
    net = network()
    nearest, q = (probq.post_training(net, [X], plan=FIXED, rounding=r, progress=False) for r in ([], None))
    with torch.no_grad():
        wanted, *found = (torch.softmax(own(X).double(), -1) for own in (net, nearest, q))
    divergences = [float((wanted * (wanted / law).log()).sum()) for law in found]
    assert divergences[1] < divergences[0]


def test_a_budget_below_fixed_widths_is_told() -> None:
    """BOPs by hand, the network's input at 8 bits."""
    cost = (48 * 2 * 8 + 24 * 2 * 4) / (72 * 32 * 32) * 100
    for percent, reached in ((cost * 1.01, True), (cost * 0.99, False)):
        budget = Budget(percent=percent)
        if reached:
            q = probq.post_training(network(), [X], budget, plan=FIXED, rounding=[], progress=False)
            assert q.mode().percent() == pytest.approx(cost)
        else:
            with pytest.raises(ProbqError, match=r"cannot be reached: the cheapest widths cost 960 \(1\.303 %\)"):
                probq.post_training(network(), [X], budget, plan=FIXED, rounding=[], progress=False)
    with pytest.raises(ProbqError, match=r"needs a budget, .*, or a plan of fixed widths"):
        probq.post_training(network(), [X], progress=False)


@pytest.mark.parametrize("progress", [False, True])
def test_progress_reaches_given_functions(progress: bool) -> None:
    seen = []

    def shows(q: Quantized, batches: Any, *, progress: bool = True) -> Quantized:
        seen.append(progress)
        return q

    functions = [shows, partial(shows, progress=not progress), probq.ptq.gpfq]
    probq.post_training(network(), [X], plan=FIXED, rounding=functions, progress=progress)
    assert seen == [progress, not progress]


def test_learned_rounding_is_silent_without_progress(capsys: pytest.CaptureFixture[str]) -> None:
    probq.post_training(network(), [X], plan=FIXED, rounding=[probq.ptq.reconstruct], progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("place", [0, 1])
def test_batches_without_examples_are_told(place: int) -> None:
    data, q = [X, X], probq.quantize(network(), X, FIXED)
    data[place] = X[:0]
    with pytest.raises(ProbqError, match=rf"batch {place} for post_training holds no example; leave it out"):
        probq.post_training(network(), data, Budget(percent=5), progress=False)
    with pytest.raises(ProbqError, match=rf"batch {place} for gpfq holds no example"):
        probq.ptq.gpfq(q.at(q.mode()), [(x, None) for x in data])
    with pytest.raises(
        ProbqError, match=r"batch 0 for criteria\.kl holds no example; .* give inputs a batch axis first"
    ):
        probq.criteria.kl(probq.quantize(network(), X), [torch.tensor(1.0)], progress=False)


def test_pairs_that_promise_less_than_no_loss_choose_nothing_narrow_under_a_loose_budget() -> None:
    """Ten pairs of -1 outweigh five single energies of 0.5; the widest choice has 0, as a network measured has."""

    def promising(q: Quantized, batches: Any) -> probq.Energy:
        names = tuple(name for name, site in q.named_sites() if len(site.ladder) > 1)
        widths = tuple(q.quantizer(name).ladder.bits for name in names)
        unary = [[0.5] * (len(row) - 1) + [0.0] for row in widths]
        narrow = torch.tensor([value > 0 for row in unary for value in row], dtype=torch.float64)
        pairwise = -torch.outer(narrow, narrow)
        ends = [0, *torch.tensor([len(row) for row in widths]).cumsum(0).tolist()]
        for first, last in itertools.pairwise(ends):
            pairwise[first:last, first:last] = 0
        return probq.Energy(names, widths, unary, pairwise.numpy())

    budget = Budget(percent=100)
    q = probq.post_training(network(), [X], budget, criterion=promising, rounding=[], progress=False)
    widest = {name: max(site.ladder.bits) for name, site in q.named_quantizers()}
    assert dict(q.mode().widths) == widest
    assert q.energy is not None
    narrowest = {name: q.energy.widths[place][0] for place, name in enumerate(q.energy.names)}
    assert q.energy(narrowest) < q.energy(widest)
