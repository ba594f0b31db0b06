"""`post_training` takes a trained network to a decided one under a budget, without training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from probq.cost.budget import Budgets, budgets
from probq.criteria import kl, loss
from probq.criteria.clado import projected
from probq.decisions.assignment import Assignment
from probq.decisions.widths import widths_are_fixed
from probq.decisions.within_budget import check_budget_reachable
from probq.evaluation.diagnostics.held_out import scores
from probq.likelihoods import Likelihood
from probq.network.distributions.kl import total_divergence
from probq.network.program.substitution import substitute
from probq.network.quantize import quantize
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.plan import Planner
from probq.priors.energies.energy import Energy
from probq.training.preparation import usual_likelihood
from probq.training.ptq.batch_norm import has_norms, norms
from probq.training.ptq.bias import bias
from probq.training.ptq.decided import check_decided
from probq.training.ptq.gpfq import gpfq
from probq.training.ptq.input_scales import set_input_scales
from probq.training.ptq.reconstruct import reconstruct
from probq.training.refinement.allocate import allocate
from probq.utils.arguments import check_number
from probq.utils.batches import Batches, first_examples, with_targets
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, call


def post_training(
    net: nn.Module,
    batches: Iterable[Any],
    budget: Budgets = None,
    *,
    plan: Planner | None = None,
    criterion: Callable[..., Energy] | None = None,
    likelihood: Likelihood | None = None,
    rounding: Sequence[Callable[..., Quantized]] | None = None,
    examples: int = 512,
    progress: bool = True,
) -> Quantized:
    """Return a decided network within a budget, from a few hundred inputs and without training.

    The scales of inputs are set, a criterion measures what each width costs, `probq.allocate` chooses widths, none
    narrower only because these examples liked that better (`Energy.monotone`, and for pairs
    `probq.criteria.clado(project=True)`). Then weights are rounded by
    `probq.ptq.gpfq` or `probq.ptq.reconstruct` and biases corrected by `probq.ptq.bias`, or normalisation is
    moved to the decided widths by `probq.ptq.norms`, where that helps on the same examples.

    Args:
        net: a trained network; it is left untouched.
        batches: iterable of `(input, target)`, or of inputs alone.
        budget: the limit, or a list of limits that all hold; None where the plan leaves no choice of widths.
        plan: as in `probq.quantize`. Where all its ladders have one rung, as in `probq.uniform(4, 4)`, nothing is
            measured and allocated: the network is rounded at these widths.
        criterion: one of `probq.criteria`, or a function of a network and batches that gives an energy; by default
            `loss` where there are labels, and `kl` where there are none. It gets `examples` and `progress` as
            functions of `rounding` get the latter.
        likelihood: as in `probq.quantize`.
        rounding: functions of a decided network and batches, such as those of `probq.ptq`, each of which takes what the
            one before it gave; `[]` leaves nearest rounding. By default those above are compared. Functions that have
            `progress` among their arguments get that of here, unless `functools.partial` has set another one.
        examples: greatest number of examples, kept in memory.
        progress: show a progress bar.

    Returns:
        The network at its widths, ready for `probq.lower`, for `probq.fit`, which tunes it at these widths, and for
        `probq.report`; `q.mode()` is what ships, and `q.energy` what the criterion measured.

    Raises:
        ProbqError: if there is no data, the network cannot be quantized, or the budget is out of reach.

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> q = probq.post_training(net, [torch.rand(64, 2)], probq.Budget(percent=2), progress=False)
        >>> q.mode().percent() <= 2
        True
    """
    check_number("examples", examples, 1)
    if criterion is not None and not callable(criterion):
        raise ProbqError(f"criterion is one of probq.criteria, such as probq.criteria.kl, not {criterion!r:.80}")
    if rounding is not None and (not isinstance(rounding, Sequence) or not all(map(callable, rounding))):
        raise ProbqError(f"rounding is a list of functions, such as [probq.ptq.reconstruct], not {rounding!r:.80}")
    found = first_examples(batches, examples, torch.device("cpu"), "post_training")
    labelled = all(y is not None for _, y in found)
    if not labelled and any(y is not None for _, y in found):
        raise ProbqError(
            "some batches for post_training have targets and others have none; give all of them (input, target)"
        )
    q = quantize(net, found[0][0], plan, likelihood)
    if not budgets(budget) and not widths_are_fixed(q):
        raise ProbqError("post_training needs a budget, such as probq.Budget(percent=1), or a plan of fixed widths")
    data = Batches(with_targets(found), q.device)
    q.eval()
    if labelled and q.likelihood is None:
        q.likelihood = usual_likelihood(q, *next(iter(data)))
    set_input_scales(q, data, targets=labelled)
    q.budget = budget if budgets(budget) else None
    measured = _with_options(criterion or (loss if labelled else kl), examples=examples, progress=progress)
    decided = q.at(_widths(q, found, measured))
    if rounding is not None:
        return _in_turn(decided, found, rounding, progress)
    measure = _loss if labelled else partial(_divergence, reference=decided)
    several = _rounded(decided, found, examples, progress)
    return min(several, key=partial(measure, data=data))  # the first of equal ones


def _widths(q: Quantized, found: list[Any], criterion: Callable[..., Energy]) -> Assignment:
    """Return the widths of least energy within the budget, which the network keeps, or the only ones.

    Raises:
        ProbqError: if the budget is out of reach.
    """
    check_budget_reachable(q, q.budget)
    if widths_are_fixed(q):
        return q.mode()
    q.energy = criterion(q, found)
    if not isinstance(q.energy, Energy):
        raise ProbqError(f"the criterion of post_training gives a probq.Energy, not {q.energy!r:.80}")
    return allocate(q, _sensible(q.energy), q.budget)


def _sensible(energy: Energy) -> Energy:
    """Return the energy in which no choice is better than the widest one, as far as it goes by itself.

    Pairs of one sign outweigh single energies where many tensors are narrow, so that their form has no lower end.
    """
    return (energy if energy.pairwise is None else projected(energy)).monotone()


def _in_turn(
    q: Quantized, found: list[Any], functions: Sequence[Callable[..., Quantized]], progress: bool
) -> Quantized:
    """Return what functions make of a decided network, one after the other."""
    for function in functions:
        q = _with_options(function, progress=progress)(q, found)
        check_decided(q, "the function behind one of post_training(rounding=...)")
    return q


def _with_options(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return a function with those of some options that it takes, and that nobody has set."""
    try:
        named = inspect.signature(function).parameters
    except ValueError:  # one that is written in C does not tell
        return function
    free = set(named) - set(getattr(function, "keywords", {}))
    return partial(function, **{name: value for name, value in options.items() if name in free})


def _rounded(decided: Quantized, found: list[Any], examples: int, progress: bool) -> list[Quantized]:
    """Return the ways in which a decided network is rounded by default."""
    rounded = [
        decided,
        gpfq(decided, found, examples=examples),
        reconstruct(decided, found, examples=examples, progress=progress),
    ]
    several = [*rounded, *(bias(q, found, examples=examples) for q in rounded)]
    if has_norms(decided):  # the others follow the float network's outputs, and so need its statistics
        several.append(norms(decided, found, examples=examples))
    return several


def _loss(q: Quantized, data: Batches) -> float:
    return scores(q, data, lambda x: call(q, arguments(x)))["loss"]


@torch.no_grad()
def _divergence(q: Quantized, data: Batches, reference: Quantized) -> float:
    """Return `KL(p_float || p)` of all examples in nats."""
    total = 0.0
    for x, _ in data:
        with reference.evaluating():
            law = q.law(substitute(reference.net, {}, {}, {}, *arguments(x)))
        total += total_divergence(law, q.law(call(q, arguments(x))))
    return total
