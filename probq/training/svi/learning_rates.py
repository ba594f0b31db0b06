"""Learning rates differ between weights, scales and gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from probq.likelihoods import as_network_likelihood
from probq.network.quantized.quantized import Quantized
from probq.utils.errors import ProbqError, sentence

Schedule: TypeAlias = Callable[[Optimizer, int], LRScheduler]
GATES = 20  # times the rate of the weights


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam, by what they move, and their schedules; these change the path and not the bound.

    A schedule is any of torch, made by a function of the optimizer and the number of steps of its phase, such as
    `lambda optimizer, steps: OneCycleLR(optimizer, 1e-2, total_steps=steps)`. It takes a step after each one of the
    fit; `ReduceLROnPlateau` is given the loss.

    Attributes:
        weights: the network's own parameters, which are the locations of the codes.
        scales: exponents of the scales (log2), and the logarithm of a learned noise.
        gates: log-odds of the gates, and those that priors of codes learn; None: 20 times that of the weights, more in
            a short search.
        spread: logarithm of the code posteriors' spread.
        schedule: of the tuning and of each trial; None: a cosine that ends at 0.
        search_schedule: of the search; None: constant rates, or a cosine where each step takes several draws.
        vectors: tables of vector codebooks, in units of their largest entry.
    """

    weights: float = 1e-3
    scales: float = 5e-3
    gates: float | None = None
    spread: float = 5e-3
    schedule: Schedule | None = None
    search_schedule: Schedule | None = None
    vectors: float = 3e-2


def check_optimizer(optimizer: Any) -> Optimizer:
    """Return an optimizer of parameter groups with rates of their own, or raise unless `optimizer` makes one."""
    hint = "optimizer makes an optimizer of parameter groups, such as torch.optim.Adam or lambda groups: AdamW(groups)"
    if isinstance(optimizer, Optimizer):
        name = type(optimizer).__name__
        raise ProbqError(f"{hint}; give the class instead of an optimizer that was made before ({name})")
    if not callable(optimizer):
        raise ProbqError(f"{hint}, not {optimizer!r}")
    try:
        made = optimizer([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (1e-3, 1e-2)])
    except (TypeError, ValueError) as error:
        raise ProbqError(f"{hint}; what was given fails with it: {sentence(error)}") from error
    if not isinstance(made, Optimizer):
        raise ProbqError(f"{hint}; what was given makes a {type(made).__name__}")
    return made


def make_schedule(schedule: Schedule, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Return a schedule for a number of steps, or raise unless the function makes one."""
    hint = (
        "a schedule of probq.Rates is a function of an optimizer and a number of steps that returns one of "
        "torch.optim.lr_scheduler, such as lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)"
    )
    if not callable(schedule):
        raise ProbqError(f"{hint}, not {schedule!r:.80}")
    try:
        made = schedule(optimizer, steps)
    except (KeyError, TypeError, ValueError) as error:
        raise ProbqError(f"{hint}; what was given fails: {sentence(error)}") from error
    if not isinstance(made, LRScheduler):
        raise ProbqError(f"{hint}; what was given makes a {type(made).__name__}")
    return made


def parameter_groups(q: Quantized, rates: Rates, searching: int | None) -> list[dict[str, Any]]:
    """Return the parameters with their rates, for an optimizer; gates too in a search of so many steps."""
    gates = rates.gates if rates.gates is not None else max(GATES * rates.weights, 10 / (searching or 1000))
    scales = as_network_likelihood(q.likelihood).scale_parameters
    chosen: dict[float, list[Tensor]] = {}
    for name, parameter in q.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if not parameter.requires_grad or (last == "logits" and searching is None):
            continue
        quantizing = name.startswith(("quantizers.", "tables."))
        rate = rates.weights
        if quantizing:
            own = {"log2_scale": rates.scales, "log_spread": rates.spread, "logits": gates, "prior_logits": gates}
            rate = own.get(last, rates.weights)
            rate = gates if ".code_logits." in name else rates.vectors if ".vectors." in name else rate
        elif name.startswith("likelihood.") and name.removeprefix("likelihood.") in scales:
            rate = rates.scales
        chosen.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in chosen.items()]
