"""`select` fits a selector between decided networks, so that the expected cost over data keeps a budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from probq import cost as costs
from probq.cost.budget import Budget
from probq.decisions.assignment import Assignment
from probq.decisions.widths import widths_are_fixed
from probq.integer import IntegerModel
from probq.integer.lowering.lower import lower
from probq.likelihoods import Normal
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.fit import fit
from probq.training.selection.losses import example_losses
from probq.training.selection.multiplier import Scores, least_price
from probq.training.selection.selection import Selection
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number


def select(
    networks: Sequence[Quantized],
    selector: Quantized,
    batches: Iterable[Any],
    budget: Budget,
    epochs: int = 10,
    *,
    progress: bool = True,
    **options: Any,
) -> Selection:
    """Return a choice between networks for each example, whose expected cost over the data keeps a budget.

    The selector learns to estimate from the input what each network loses on it, `l_k(x)`, less what they lose in the
    mean, by `fit` with normal noise on the measured losses, centred and scaled. The choice is
    `argmin_k l_k(x) + price * cost_k`, the Lagrangian of

        min E[loss]   subject to   cost(selector) + E[cost of the choice] <= limit,

    whose price is found by bisection; on the data given here the limit then holds exactly. The data should be like what
    the networks will see: on examples that they were trained on to a loss of 0, all of them look alike.

    Args:
        networks: with fixed widths, two or more, such as `q.at(q.mode(budget))` for several budgets, each tuned by
            `fit`. They must be forms of one network.
        selector: from `quantize`, of a small network with an output for each of them, `[batch, networks]`; it is
            fitted in place.
        batches: iterable of `(input, target)`.
        budget: limit on the expected cost of one example, of the selector and the network chosen for it.
        epochs: passes of the selector over the data.
        progress: show a progress bar.
        options: of the fit of the selector, those of `FitOptions`.

    Source: C. Hong, S. Baik, H. Kim, S. Nah, K. M. Lee, 2022, "CADyQ: Content-Aware Dynamic Quantization for Image
    Super-Resolution", for widths that a selector chooses for each patch of an image.

    Raises:
        ProbqError: there are fewer than two networks, they are of different layers, or their widths are not fixed; the
            cheapest choice exceeds the limit; the selector has not one output for each network, or cannot be lowered.

    Example:
        >>> import torch, probq
        >>> from torch import nn
        >>> x, y = torch.rand(64, 4), torch.randint(2, (64,))
        >>> q = probq.quantize(nn.Linear(4, 2), x, probq.Plan(weight=probq.codebooks.ladder(2, 8)))
        >>> low, high = (q.at(q.mode(probq.Budget(percent=p))) for p in (2, 50))
        >>> selector = probq.quantize(nn.Linear(4, 2), x, probq.uniform(2, 8))
        >>> budget = probq.Budget(percent=6)
        >>> chosen = probq.select([low, high], selector, [(x, y)], budget, 1, progress=False, seed=0)
        >>> chosen.percent() <= 6
        True
    """
    assignments = _checked(networks, selector, budget)
    limit, spent = budget.absolute(networks[0].layers), np.array([a.cost(budget.cost) for a in assignments])
    _check_limit(limit, float(spent.min()), 0.0)
    _lowered(selector, len(networks))  # what cannot be one is told before the fit
    inputs, losses = example_losses(networks, assignments, Batches(batches, networks[0].device))
    losses -= losses.mean(1, keepdims=True)  # how hard an example is for all of them decides nothing
    means = losses.mean(0)
    scale = float((losses - means).std()) or 1.0
    targets = torch.from_numpy((losses - means) / scale).float().split([len(x) for x in inputs])
    pairs = list(zip(inputs, targets, strict=True))
    fit(selector, pairs, None, epochs, progress=progress, **{"likelihood": Normal(), **options})
    own = selector.mode().cost(budget.cost)
    _check_limit(limit, float(spent.min()), own)
    model = _lowered(selector, len(networks))
    integers = np.concatenate([model(x.cpu()) for x in inputs])
    reached = model.ranges[str(model.output)]
    scores = Scores(integers, float(model.output_scale) * scale, means, reached.high - reached.low, spent)
    price = least_price(scores, limit - own)
    offsets = scores.offsets(price)
    shares = np.bincount(scores.choices(offsets), minlength=len(networks)) / len(integers)
    return Selection(tuple(networks), selector, offsets, price, budget, shares, model, assignments)


def _checked(networks: Any, selector: Any, budget: Any) -> tuple[Assignment, ...]:
    """Return the decisions of the networks.

    Raises:
        ProbqError: if something that was given is not what it should be.
    """
    if not isinstance(networks, Sequence) or len(networks) < 2:
        raise ProbqError("select chooses between two networks or more; give a list such as [q.at(narrow), q.at(wide)]")
    for q in (*networks, selector):
        check_posterior(q, "select")
    for number, q in enumerate(networks):
        if not widths_are_fixed(q):
            raise ProbqError(f"network {number} has no fixed widths; give q.at(q.mode(budget))")
        if [(each.name, each.macs) for each in q.layers] != [(each.name, each.macs) for each in networks[0].layers]:
            raise ProbqError(f"network {number} has other layers than the first; give forms of one network, q.at(...)")
    if not isinstance(budget, Budget):
        raise ProbqError(f"select takes one probq.Budget, on the expected cost of an example, not {budget!r:.80}")
    if budget.probability is not None:
        raise ProbqError("select limits the expected cost over data; give a budget without probability")
    if budget.cost is costs.storage:
        raise ProbqError("the weights of all networks are stored, whichever is chosen; limit a cost of running them")
    return tuple(q.mode() for q in networks)


def _check_limit(limit: float, cheapest: float, selector: float) -> None:
    """Raise unless the cheapest choice keeps the limit."""
    if cheapest + selector > limit:
        parts = format_number(cheapest, up=True)
        if selector:  # its cost is known
            parts += f" and its selector {format_number(selector, up=True)}, together"
        raise ProbqError(
            f"the cheapest network costs {parts}, more than the limit of {format_number(limit)}; raise the budget, or "
            "give a narrower network or a smaller selector"
        )


def _lowered(selector: Quantized, count: int) -> IntegerModel:
    """Return the integers of a selector.

    Raises:
        ProbqError: if it does not give one number for each network.
    """
    model = lower(selector)
    shape = model.ranges[model.output].shape if isinstance(model.output, str) else None
    if shape != (count,):
        raise ProbqError(f"the selector gives values of shape {shape} for each example, not ({count},), one a network")
    return model
