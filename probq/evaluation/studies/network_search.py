"""Channels and widths are chosen together: a few networks are measured, and a Gaussian process predicts the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from probq.cost.budget import Budget
from probq.decisions.widths import fix_widths
from probq.evaluation.diagnostics.held_out import validate
from probq.evaluation.studies.network_choices import NetworkSpace, check_bops_limit, network_space, resized
from probq.network.quantize import quantize
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.plan import Planner
from probq.training.fit import fit
from probq.training.refinement.best_first import BestFirstSearch, Measure
from probq.training.refinement.evidence.evidence import scores
from probq.training.refinement.evidence.space import State
from probq.training.refinement.prediction.choice_process import ChoiceProcess
from probq.utils.arguments import check_number
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError

FACTORS = (0.5, 0.75, 1.0, 1.5)  # of the numbers of channels
SURVEY, FAVOURITES = 0.5, 0.25  # of the networks that are measured
FEWEST = 4  # networks to predict from
POOL = 100  # random networks among which a favourite is looked for
OCTAVES = 4.0  # between two options, over which the correlation of their effects falls to 1 / e


@dataclass(frozen=True)
class MeasuredNetwork:
    """A measured network has channels, widths, a cost, and a loss after a while of tuning.

    Attributes:
        channels: number of output channels of each layer that can change, by name; of those that change together, of
            the first.
        widths: bits of each quantizer, by name.
        cost: BOPs.
        loss: on held-out data, in nats for one example.
    """

    channels: Mapping[str, int]
    widths: Mapping[str, Any]
    cost: float
    loss: float


@dataclass(frozen=True)
class NetworkSearch:
    """A network search ends with a network whose channels and widths a budget pays for.

    Attributes:
        quantized: the network of least loss, its widths fixed, tuned for as long as it was measured; `fit` goes on
            from there.
        measured: all networks that were measured, the best first.
    """

    quantized: Quantized = field(repr=False)
    measured: tuple[MeasuredNetwork, ...]
    _space: NetworkSpace = field(repr=False)
    _predictor: LossPredictor = field(repr=False)

    def predict(self, channels: Mapping[str, int], widths: Mapping[str, Any]) -> float:
        """Return the loss in nats that is expected of a network after as much tuning.

        Args:
            channels: as those of a `MeasuredNetwork`.
            widths: likewise.

        Raises:
            ProbqError: if one is missing, or not among the choices.
        """
        return float(self._predictor(np.array([self._space.state(channels, widths)]))[0])


def search_networks(
    net: nn.Module,
    example: Any,
    batches: Iterable[Any],
    budget: Budget,
    validation: Iterable[Any],
    epochs: int = 1,
    *,
    plan: Planner | None = None,
    factors: Sequence[float] = FACTORS,
    networks: int = 60,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> NetworkSearch:
    """Return the network of least loss among many numbers of channels and widths within one limit on BOPs.

    A network is measured by its loss on held-out data, after a few epochs at its widths from the trained weights: of
    channels that go, those of the smallest weights go first, and new ones compute the same (`widen`). Half of the
    networks are drawn at random among those that spend the limit. A Gaussian process then predicts the loss of all
    others: each number of channels and each width has an effect of its own, near to those of similar numbers. What it
    thinks best is measured next, first among networks one step from the best so far, then among all. Where no more
    networks keep the limit than may be measured, all are.

    Args:
        net: the trained float network; it is left untouched.
        example: a batch of inputs as in `quantize`.
        batches: as in `fit`.
        budget: one limit on BOPs; percentages are of `net`.
        validation: held-out batches. What is chosen by them looks better on them than it is.
        epochs: of each network that is measured.
        plan: ladders of widths, as in `quantize`; each tensor has one width.
        factors: of the numbers of channels, each on its own, but for layers that change together.
        networks: greatest number of networks that are measured, 4 or more.
        seed: of the networks drawn and of each fit; by default that of the fits is torch's global random state.
        progress: show a progress bar.
        options: see `fit`.

    Raises:
        ProbqError: if no layer's channels can change, channels or weights have widths of their own, a number is out of
            range, the limit is not one on BOPs or below the cost of the smallest network, or every loss is infinite.
            Also as `fit`.

    Source: T. Wang, K. Wang, H. Cai, J. Lin, Z. Liu, H. Wang, Y. Lin, S. Han, 2020, "APQ: Joint Search for Network
    Architecture, Pruning and Quantization Policy" (a predictor of accuracy, there a network).

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.rand(16, 4), torch.arange(16) % 3
        >>> budget = probq.Budget(percent=2)
        >>> found = probq.search_networks(net, x, [(x, y)], budget, [(x, y)], networks=4, progress=False)
        >>> found.quantized.mode().cost() <= budget.absolute(probq.layers(net, x))
        True
    """
    check_number("networks", networks, FEWEST)
    check_bops_limit(budget, "networks")
    space = network_space(quantize(net, example, plan), net, example, factors, budget)
    data, held = (given if hasattr(given, "__len__") else list(given) for given in (batches, validation))
    best: dict[float, Quantized] = {}

    def measure(choice: Mapping[str, Any]) -> float:
        channels, widths = space.parts(choice)
        q = quantize(resized(net, example, channels), example, plan)
        fix_widths(q, widths)
        fit(q, data, None, epochs, seed=seed, progress=False, **options)
        loss = validate(q, Batches(held, q.device, "validation data"))["loss"]
        if math.isfinite(loss) and loss < min(best, default=math.inf):
            best.clear()
            best[loss] = q
        return loss if math.isfinite(loss) else math.inf

    search = explore(space, measure, networks, np.random.default_rng(seed), progress)
    if not best:
        raise ProbqError("no network has a finite loss on the validation data; train for longer, or raise the limit")
    (q,) = best.values()
    measured = (
        MeasuredNetwork(*space.parts(space.choices.widths(state)), space.cost(state), search.losses[state])
        for state in search.ranked
    )
    return NetworkSearch(q, tuple(measured), space, LossPredictor(space, search.losses))


def explore(
    space: NetworkSpace, measure: Measure, networks: int, random: np.random.Generator, progress: bool = False
) -> BestFirstSearch:
    """Return a search that has measured random networks, steps from the best one, and favourites among all.

    Args:
        space: of networks.
        measure: the loss of a choice.
        networks: greatest number of losses to measure.
        random: draws networks.
        progress: show a progress bar.
    """
    drawn = space.draws(round(SURVEY * networks), random)
    search = BestFirstSearch(space.choices, drawn[:1], measure, networks, drawn[1:], round(FAVOURITES * networks))
    search.run(progress, "search networks")
    hidden, total = not progress or len(search.losses) >= networks, networks - len(search.losses)
    with tqdm(total=total, disable=hidden, unit="network", desc="measure favourites", dynamic_ncols=True) as bar:
        while len(search.losses) < networks and np.isfinite(list(search.losses.values())).any():
            favourite = _favourite(space, search, random)
            if favourite is None:
                break
            search.loss(favourite)
            bar.update()
    return search


class LossPredictor:
    """A predictor tells what losses measured of some networks let expect of others.

    The scores of the losses, as in `probq.decide`, have a `ChoiceProcess`, in which the effects of two options have the
    correlation `exp(-|octaves between them| / 4)`.

    Args:
        space: of networks.
        losses: of some of them, at least one of them finite.
    """

    def __init__(self, space: NetworkSpace, losses: Mapping[State, float]) -> None:
        values = np.array(list(losses.values()))
        finite, scored = values[np.isfinite(values)], scores(values)
        self.least = float(finite.min())
        self.unit = float(np.ptp(finite)) / math.expm1(scored.max()) if scored.any() else 1.0
        sizes = [np.log2(1 + np.asarray(own, dtype=float)) for own in space.choices.options]
        likeness = [np.exp(-np.abs(own[:, None] - own) / OCTAVES) for own in sizes]
        self.process = ChoiceProcess(np.array(list(losses)), scored, space.choices.log_probs, likeness=likeness)

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return expected losses `[N]` in nats of states `[N, places]`."""
        return np.asarray(self.least + self.unit * np.expm1(self.process(states)))


def _favourite(space: NetworkSpace, search: BestFirstSearch, random: np.random.Generator) -> State | None:
    """Return the network of least predicted loss that was not measured, among random ones and all on the way down."""
    predictor = LossPredictor(space, search.losses)
    guesses: dict[State, float] = {}
    ahead = [*space.draws(POOL, random), *search.losses]
    while ahead:
        before = min(guesses.values(), default=math.inf)
        guesses |= dict(zip(ahead, predictor(np.array(ahead)).tolist(), strict=True))
        best = min(guesses, key=lambda state: (guesses[state], state))
        ahead = list(space.choices.neighbours(best)) if guesses[best] < before else []
    new = [state for state in guesses if state not in search.losses]
    return min(new, key=lambda state: (guesses[state], state), default=None)
