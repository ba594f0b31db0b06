"""The options of `fit` and `steps` belong together: how a network is trained, whatever it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn

from probq.likelihoods import Likelihood
from probq.priors.energies.energy import Energy
from probq.rules import DualAscent, Rule
from probq.training.check_options import check_options, check_rule
from probq.training.distillation import Teacher, as_teacher
from probq.training.svi.learning_rates import Rates, check_optimizer
from probq.training.svi.updates import Clip, Updates
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError

ADAM = partial(torch.optim.Adam, fused=True)
DUAL_ASCENT = DualAscent()


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of a fit are given to `fit` and `steps` by keyword.

    Attributes:
        search: share of the steps that learn widths; by default 0.6, or all of them where 64 draws are taken by default
            (see `draws`) and no budget asks for a decision.
        rounding: whether codes are rounded while the network is tuned at fixed widths, for a better mode, and before it
            in a search at temperatures below 1, for less noise; a search that is the whole fit, or whose plan has an
            estimator or a law of codes of its own, draws them. False always draws them, so that the posterior of the
            codes is fitted, for draws and `probq.ensemble`.
        temperature: factor of all KL terms. 1 is the Bayesian posterior; deep networks need a cold one
            (F. Wenzel et al., 2020, "How Good is the Bayes Posterior in Deep Neural Networks Really?").
        draws: of widths and codes in each step. One takes the gradient of each layer's estimator in the plan; from 2
            on, the laws of widths and codes have the unbiased gradient of `leave_one_out`, whatever the estimator;
            rates fall with a cosine over the search, scales stay, and in the search's second half nothing but those
            laws moves, so that they settle. By default 64 for a network of at most 64 quantized weights that is fitted
            at temperature 1 with the plan's default estimator, so that a posterior small enough to be checked is right;
            otherwise one.
        likelihood: function from outputs to a law of the targets; by default normal with learned noise for real
            targets, and categorical for integer ones. Their classes are on the output's last axis, or on axis 1 where
            the shapes of the first batch allow only that (`[N, C, H, W]` for targets `[N, H, W]`); targets of -100 are
            not observed. See `probq.likelihoods.Categorical` for class weights and other targets to leave out.
        rates: learning rates. Where 64 draws are taken by default in a fit that is all search, weights and gates move
            at `50 / steps` at least, so that some hundred steps lead a small posterior to where it belongs.
        optimizer: makes an optimizer of parameter groups; by default Adam, one fused pass over the parameters.
        clip: greatest norm of the gradient of all parameters together, to which a longer one is scaled down; or a
            function of the parameters that changes their gradients, such as
            `partial(torch.nn.utils.clip_grad_value_, clip_value=1.0)`. It changes the path, and not the bound.
        average: decay of an exponential moving average of the parameters, such as 0.999. It begins with each phase,
            takes the parameters' place at its end, and is what `fit` validates; what steps record is the bound of the
            parameters themselves.
        accumulate: number of batches whose gradients are added up in one step, each with a draw of widths and codes of
            its own; the bound of a step is then the mean over all their examples. An epoch has so many times fewer
            steps.
        rule: enforces the budget while widths are learned, one of `probq.rules`.
        prior: an energy for one example in nats, of a criterion; for other units see `Energy.to_nats`. It takes the
            place of the priors of widths, and counts as much as the data does: `P(widths) proportional to
            exp(-N energy / temperature)`; `0.1 * energy` counts a tenth. Under a budget the search starts at the
            widths of `probq.allocate`.
        teacher: a network whose outputs are learned from besides the targets, or one of `probq.distillation`, where it
            says what that makes of the bound.
        evaluations: greatest number of networks it measures; 0 takes the most probable widths.
        trials: number of choices that are tuned for a while on copies, all from where the search ended and on the same
            batches; the one of least validation loss goes on from there. Half of them are those that `probq.decide`
            measured best, the others the widest uniform widths within the budget, if there are any. Together they take
            a quarter of the tuning's steps; none are made where each would have fewer than 200.
        seed: decides the random numbers of all steps; by default torch's global random state does, which moves on.
        fabric: a `lightning.Fabric` that was launched, from the extra "distributed": the network is moved to its device
            and computed in its precision, "32-true" or "bf16-mixed", and several processes fit it together. Each has a
            part of the data and draws codes of its own; widths, multipliers and history are the same in all of them,
            and the first one writes files. A `DataLoader` is shared out, as by `fabric.setup_dataloaders`; any other
            iterable is the process's own part, as long in each of them.

    Raises:
        ProbqError: if one is not what it should be.

    Example:
        >>> FitOptions(temperature=1.0, seed=0).evaluations
        100
    """

    search: float | None = None
    rounding: bool = True
    temperature: float = 0.001
    draws: int | None = None
    likelihood: Likelihood | None = None
    rates: Rates | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM
    clip: Clip | None = None
    average: float | None = None
    accumulate: int = 1
    rule: Rule = DUAL_ASCENT
    prior: Energy | None = None
    teacher: Teacher | nn.Module | None = None
    evaluations: int = 100
    trials: int = 4
    seed: int | None = None
    fabric: Any = None

    def __post_init__(self) -> None:
        check_options(self.evaluations, self.trials, self.seed, self.search, self.temperature)
        check_rule(self.rule, self.draws)
        as_teacher(self.teacher)
        check_optimizer(self.optimizer)
        if self.rates is not None and not isinstance(self.rates, Rates):
            raise ProbqError(f"rates is probq.Rates(...), such as probq.Rates(weights=1e-3), not {self.rates!r:.80}")
        check_number("accumulate", self.accumulate, 1)
        updates_of(self, Rates())


def options_of(function: str, given: Mapping[str, Any]) -> FitOptions:
    """Return options given by keyword to a function of this name.

    Raises:
        ProbqError: if one is unknown, or not what it should be.
    """
    known = [option.name for option in fields(FitOptions)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ProbqError(
            f"{function} has no option {unknown[0]!r}; besides its own arguments it takes {', '.join(known)}"
        )
    return FitOptions(**given)


def updates_of(options: FitOptions, rates: Rates) -> Updates:
    """Return how gradients move parameters, at these rates."""
    return Updates(options.optimizer, rates, options.clip, options.average)


def told_options(options: FitOptions) -> dict[str, Any]:
    """Return what decides a fit, by name: all but the processes, whose number does."""
    return {option.name: getattr(options, option.name) for option in fields(options) if option.name != "fabric"}
