"""Clipped gradients, schedules, averages, accumulated batches and early stops, each against a computation by hand."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import BUDGET, X, Y, network
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler

import probq
from probq import Budget, History, ProbqError, Quantized, Rates
from probq.evaluation.diagnostics.held_out import validate
from probq.utils.batches import Batches

SAME = Rates(weights=0.1, scales=0.1, gates=0.1, spread=0.1)
PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]
HELD_OUT = [(X[48:], Y[48:])]


def decided() -> Quantized:
    """A network without random numbers, all whose steps are at fixed widths."""
    torch.manual_seed(0)
    q = probq.quantize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), X)
    return q.at(q.mode())


def vector(q: Quantized) -> Tensor:
    return nn.utils.parameters_to_vector(p for p in q.parameters() if p.requires_grad).detach().clone()


def path(q: Quantized, batches: Any = PAIRS, epochs: int = 2, **options: Any) -> list[Tensor]:
    """The parameters before the first step and after each one."""
    before = vector(q)
    return [before, *(vector(q) for _ in probq.steps(q, batches, epochs=epochs, seed=0, **options))]


# Gradients


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_a_clipped_gradient_is_the_same_but_for_its_length(share: float) -> None:
    options: dict[str, Any] = {"epochs": 1, "optimizer": SGD, "rates": SAME}
    start, free = path(decided(), [(X, Y)], **options)
    gradient = (start - free) / 0.1
    _, clipped = path(decided(), [(X, Y)], clip=share * float(gradient.norm()), **options)
    torch.testing.assert_close(start - clipped, (start - free) * min(share, 1.0), rtol=1e-4, atol=1e-6)
    clip = partial(nn.utils.clip_grad_value_, clip_value=share * 0.01)
    _, clipped = path(decided(), [(X, Y)], clip=clip, **options)
    torch.testing.assert_close(start - clipped, 0.1 * gradient.clamp(-share * 0.01, share * 0.01), rtol=1e-3, atol=1e-6)


def test_accumulated_batches_are_one_large_batch() -> None:
    parts = [(X[a:b], Y[a:b]) for a, b in ((0, 24), (24, 40), (40, 48))]
    wholes = [(X[:40], Y[:40]), (X[40:48], Y[40:48])]
    accumulated, whole = decided(), decided()
    steps = list(probq.steps(accumulated, parts, epochs=2, accumulate=2, seed=0))
    expected = list(probq.steps(whole, wholes, epochs=2, seed=0))
    assert [(s.step, s.epoch, s.phase) for s in steps] == [(s.step, s.epoch, s.phase) for s in expected]
    for found, right in zip(steps, expected, strict=True):
        assert (found.loss, found.nll) == pytest.approx((right.loss, right.nll), rel=1e-4)
    torch.testing.assert_close(vector(accumulated), vector(whole), rtol=1e-4, atol=1e-5)


def test_accumulated_steps_count_budget_and_divergences_once() -> None:
    one = next(probq.steps(network(), [(X[:16], Y[:16])], BUDGET, epochs=4, seed=0))
    two = next(probq.steps(network(), [(X[:16], Y[:16])] * 2, BUDGET, epochs=4, accumulate=2, seed=0))
    assert two.kl == pytest.approx(one.kl / 2, rel=0.2)  # of twice as many examples, and of two draws
    assert (two.percent, two.limit, two.multiplier) == pytest.approx((one.percent, one.limit, one.multiplier))
    assert two.loss - two.nll - two.kl == pytest.approx(one.loss - one.nll - one.kl, rel=1e-3, abs=1e-6)


# Schedules


def test_rates_follow_any_schedule_in_each_phase() -> None:
    seen: dict[str, tuple[Any, int]] = {}

    def search(optimizer: Any, steps: int) -> Any:
        warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
        seen["search"] = (
            lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.ExponentialLR(optimizer, 0.5)], [2]),
            steps,
        )
        return seen["search"][0]

    def tune(optimizer: Any, steps: int) -> Any:
        seen["tune"] = lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps), steps
        return seen["tune"][0]

    rates = Rates(weights=1e-3, schedule=tune, search_schedule=search)
    found: dict[str, list[float]] = {"search": [], "tune": []}
    for step in probq.steps(network(), PAIRS, BUDGET, epochs=4, search=0.5, seed=0, rates=rates):
        found[step.phase].append(seen[step.phase][0].get_last_lr()[0])
    assert [seen[phase][1] for phase in found] == [6, 6]
    assert found["search"] == pytest.approx([5.5e-4, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5])
    alone = SGD([torch.zeros(1, requires_grad=True)], 1e-3)
    cycle, expected = lr_scheduler.OneCycleLR(alone, 1e-2, total_steps=6), []
    for _ in range(6):
        alone.step()
        cycle.step()
        expected += cycle.get_last_lr()
    assert found["tune"] == pytest.approx(expected)


def test_a_plateau_is_one_of_the_loss() -> None:
    made: list[lr_scheduler.ReduceLROnPlateau] = []

    def plateau(optimizer: Any, steps: int) -> Any:
        made.append(lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0, threshold_mode="abs"))
        return made[-1]

    losses = [s.loss for s in probq.steps(decided(), PAIRS, epochs=1, seed=0, rates=Rates(schedule=plateau))]
    assert made[-1].best == losses[0]
    assert made[-1].get_last_lr()[0] == pytest.approx(1e-3 * 0.1**2)


# Averages


def averaged(points: list[Tensor], decay: float) -> Tensor:
    found = points[0]
    for k, point in enumerate(points[1:], 1):
        d = min(decay, (1 + k) / (10 + k))
        found = d * found + (1 - d) * point
    return found


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_a_phase_ends_at_the_average_of_its_points(decay: float) -> None:
    q, points = decided(), path(decided())
    found = path(q, average=decay)
    for one, other in zip(found[:-1], points[:-1], strict=True):
        assert torch.equal(one, other)  # the average does not change the path
    torch.testing.assert_close(found[-1], averaged(points, decay))


def test_the_search_ends_at_its_average_too() -> None:
    options: dict[str, Any] = {"epochs": 2, "search": 1.0, "budget": Budget(percent=3), "draws": 1}
    torch.testing.assert_close(path(network(), average=0.5, **options)[-1], averaged(path(network(), **options), 0.5))


def test_averages_are_what_is_validated() -> None:
    q, points = decided(), path(decided(), epochs=1)
    history = probq.fit(q, PAIRS, epochs=2, validation=HELD_OUT, average=0.9, seed=0, progress=False)
    twin = decided()
    next(probq.steps(twin, PAIRS, epochs=2, seed=0))  # with the likelihood
    history_path = path(decided(), epochs=2)[:4]
    moved = [p for p in twin.parameters() if p.requires_grad]
    nn.utils.vector_to_parameters(averaged(history_path, 0.9), moved)
    assert history.validation[0]["loss"] == pytest.approx(validate(twin.eval(), Batches(HELD_OUT, q.device))["loss"])
    assert len(points) == 4


def test_an_interrupted_fit_leaves_its_average() -> None:
    q, points = decided(), path(decided())
    running = probq.steps(q, PAIRS, epochs=2, seed=0, average=0.9)
    for _ in range(3):
        next(running)
    running.close()
    free = [(name, p) for name, p in q.named_parameters() if p.requires_grad]
    kept = torch.cat([torch.full((p.numel(),), not name.endswith("log_spread")) for name, p in free])
    torch.testing.assert_close(vector(q)[kept], averaged(points[:4], 0.9)[kept])  # codes are made certain besides


# Early stops


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[Tensor]:
    """Lets held-out losses be these, and returns the parameters that they were asked for."""
    seen: list[Tensor] = []

    def loss_of(q: Quantized, data: Any) -> dict[str, float]:
        seen.append(vector(q))
        return {"loss": losses[len(seen) - 1]}

    monkeypatch.setattr("probq.training.epoch_end.validate", loss_of)
    return seen


def fitted(q: Quantized, epochs: int = 8, **options: Any) -> History:
    return probq.fit(
        q, PAIRS, options.pop("budget", None), epochs, validation=HELD_OUT, seed=0, progress=False, **options
    )


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_fit_stops_and_goes_back_to_its_best_epoch(monkeypatch: pytest.MonkeyPatch, average: float | None) -> None:
    seen, q = scripted(monkeypatch, [3, 2, 2.5, 2.1, 1, 0, 0, 0]), decided()
    history = fitted(q, patience=2, average=average)
    assert len(history.steps) == 4 * len(PAIRS)
    assert torch.equal(vector(q), seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_a_fit_that_is_never_out_of_patience_ends_at_its_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, q = scripted(monkeypatch, [3, 1, 2.5, 2.1]), decided()
    assert len(fitted(q, 4, patience=3).steps) == 4 * len(PAIRS)
    assert torch.equal(vector(q), seen[1])


def test_a_file_of_the_posterior_holds_the_best_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen, q = scripted(monkeypatch, [3, 2, 2.5, 2.1]), decided()
    fitted(q, patience=2, checkpoint=tmp_path / "q.safetensors")
    again = probq.load(tmp_path / "q.safetensors", nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    assert torch.equal(again.net[0].weight, q.net[0].weight)
    assert torch.equal(vector(q), seen[1])


def test_epochs_of_the_search_do_not_count_where_a_tuning_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, q = scripted(monkeypatch, [1, 1, 1, 1, 5, 4, 4, 4]), network()
    history = fitted(q, patience=1, search=0.5, evaluations=0, budget=BUDGET)
    assert len(history.steps) == 7 * len(PAIRS)
    assert torch.equal(vector(q), seen[5])


def test_in_a_search_only_states_within_the_budget_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, q, budget = scripted(monkeypatch, [k + 1.0 for k in range(12)]), network(), Budget(percent=2)
    history = fitted(q, 12, patience=12, search=1.0, budget=budget, draws=1, rates=Rates(gates=0.3))
    within = [s.percent <= 2 * (1 + 1e-6) for s in history.steps[len(PAIRS) - 1 :: len(PAIRS)]]
    assert not within[0]
    assert any(within)
    assert torch.equal(vector(q), seen[within.index(True)])


# What cannot be


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"clip": 0}, "clip is the greatest norm"),
        ({"average": 1}, "0 to below 1, not 1"),
        ({"accumulate": 0}, "accumulate must be an integer of 1 or more"),
        ({"patience": 0, "validation": HELD_OUT}, "patience must be an integer of 1 or more"),
        ({"patience": 2}, "give validation="),
        ({"rates": Rates(schedule="cosine")}, "a function of an optimizer and a number of steps .* not 'cosine'"),
        ({"rates": Rates(search_schedule=lambda optimizer, steps: None)}, "makes a NoneType"),
        ({"rates": Rates(schedule=lr_scheduler.LRScheduler)}, "what was given fails|makes"),
    ],
)
def test_options_out_of_range_are_refused_before_the_first_step(options: dict[str, Any], part: str) -> None:
    q = decided()
    before = vector(q)
    with pytest.raises(ProbqError, match=part):
        probq.fit(q, PAIRS, epochs=1, progress=False, **options)
    assert torch.equal(vector(q), before)
