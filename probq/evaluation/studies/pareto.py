"""Fits under several budgets show what each costs, what it gives, and which are dominated."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from torch import nn
from tqdm import tqdm

from probq import cost as costs
from probq.cost.budget import Budget
from probq.decisions.within_budget import probability_within
from probq.evaluation.diagnostics.held_out import validate
from probq.evaluation.diagnostics.width_draws import cost_draws, draw_costs, draw_widths
from probq.likelihoods import Likelihood
from probq.network.quantize import quantize
from probq.network.quantized.load import load
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.plan import Planner
from probq.training.fit import fit
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path, reason

INTERVAL = (0.03, 0.97)


@dataclass(frozen=True)
class Pareto:
    """This is what `probq.pareto` found.

    Attributes:
        table: a row for each budget, the largest first. In percent of the 32-bit network: `budget`; `cost` of what was
            decided; `expected cost` under the posterior, and `low` and `high`, between which 94 % of its draws lie.
            Then `P(cost<=limit)` of a draw; with validation batches `loss` in nats for one example, `accuracy` in
            [0, 1] where targets are classes, and `is_dominated`: whether another row costs no more and is no worse in
            accuracy (or else loss), and better in one of the two. Last `widths`: bits of every quantizer, the mean
            over its gates.
        networks: the fitted networks in the order of the table.
    """

    table: pandas.DataFrame
    networks: tuple[Quantized, ...] = field(repr=False)

    def plot(self, ax: Any = None) -> Any:
        """Plot the accuracy or loss over the cost; see `probq.plot.pareto`."""
        from probq import plot

        return plot.pareto(self.table, ax)


def pareto(
    net: nn.Module,
    example: Any,
    batches: Iterable[Any],
    budgets: Iterable[Budget],
    epochs: int = 10,
    *,
    plan: Planner | None = None,
    likelihood: Likelihood | None = None,
    validation: Iterable[Any] | None = None,
    warm: bool = True,
    folder: str | PathLike[str] | None = None,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Pareto:
    """Fit a network once for each budget, from the largest to the smallest.

    Args:
        net: as in `quantize`; left untouched.
        example: as in `quantize`.
        batches: as in `fit`.
        budgets: the limits, all on one cost.
        epochs: the epochs of each fit.
        plan: as in `quantize`.
        likelihood: as in `quantize`.
        validation: as in `fit`; also gives the table its `loss` and `accuracy`, at what was decided.
        warm: each fit starts from the posterior of the one before; False: each starts from `net`.
        folder: where each posterior is saved as soon as it is fitted. What is there already is loaded, not fitted
            again, and a fit that was stopped or killed goes on from its checkpoints, which are removed once it is done
            (see `fit`); with other data or options, give another folder.
        seed: the seed of each fit.
        progress: show progress bars.
        options: further arguments of `fit`.

    Returns:
        The table of all budgets, the networks and a picture.

    Raises:
        ProbqError: as `quantize` and `fit`; if a budget is given twice, or the budgets have different costs; if the
            folder cannot be made or holds fits of another network, plan or budget.
    """
    fresh = quantize(net, example, plan, likelihood)
    chosen, files = _checked(fresh, budgets), _files(folder)
    source = Batches(batches, fresh.device).source
    held = None if validation is None else Batches(validation, fresh.device, "validation data")
    networks: list[Quantized] = []
    for budget in tqdm(chosen, desc="budgets", disable=not progress, unit="fit", dynamic_ncols=True):
        path = None if files is None else files / _name(budget)
        if path is not None and path.exists():
            networks.append(_loaded(path, net, fresh, budget))
            continue
        q = copy.deepcopy(networks[-1] if warm and networks else fresh)
        own = None if held is None else held.source
        kept = None if path is None else path.with_suffix("")
        how = {"checkpoint": kept, "seed": seed, "progress": progress, **options}
        fit(q, source, budget, epochs, validation=own, **how)
        networks.append(q)
        if path is not None and kept is not None:
            q.save(path)
            shutil.rmtree(kept, ignore_errors=True)
    rows = [_row(q, budget, held) for q, budget in zip(networks, chosen, strict=True)]
    return Pareto(_framed(rows, chosen[0].cost), tuple(networks))


def _checked(q: Quantized, budgets: Iterable[Budget]) -> list[Budget]:
    """Return the budgets from the largest to the smallest, or raise unless each can be reached."""
    chosen = list(budgets) if isinstance(budgets, Iterable) else []
    if not chosen or not all(isinstance(budget, Budget) for budget in chosen):
        raise ProbqError("budgets is a list of at least one probq.Budget, such as [probq.Budget(percent=1)]")
    if any(budget.cost is not chosen[0].cost for budget in chosen):
        raise ProbqError("the budgets limit different costs and cannot be compared; give them one cost")
    chosen.sort(key=lambda budget: -budget.absolute(q.layers))
    limits = [budget.absolute(q.layers) for budget in chosen]
    if len(set(limits)) < len(limits):
        raise ProbqError("two of the budgets are the same; give each of them once")
    q.mode(chosen[-1])
    return chosen


def _files(folder: str | PathLike[str] | None) -> Path | None:
    if folder is None:
        return None
    path = checked_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProbqError(f"cannot make the folder {path}: {reason(error)}; name another") from error
    return path


def _name(budget: Budget) -> str:
    value = f"{float(budget.percent)}-percent" if budget.percent is not None else str(float(budget.limit or 0))
    return f"budget-{value}-{getattr(budget.cost, '__name__', 'cost')}.safetensors"


def _loaded(path: Path, net: nn.Module, fresh: Quantized, budget: Budget) -> Quantized:
    """Return the posterior of a file, if it fits; what a file cannot hold is given again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* was not saved, because a file cannot hold", category=UserWarning)
        q = load(path, net)
    ladders = [{name: (p.ladder, p.gates) for name, p in each.named_quantizers()} for each in (q, fresh)]
    if ladders[0] != ladders[1] or q.budget not in (None, budget):
        raise ProbqError(f"{path} holds a fit with another plan or budget; give another folder")
    q.budget = budget
    if fresh.likelihood is not None and q.likelihood is None:
        del q.likelihood
        q.likelihood = fresh.likelihood
    return q


def _row(q: Quantized, budget: Budget, held: Batches | None) -> dict[str, Any]:
    percent = 100 / costs.full(q.layers, budget.cost)
    a = q.mode(budget)
    drawn = draw_costs(q, draw_widths(q, cost_draws(q), 0)[0], budget.cost)
    low, high = np.quantile(drawn, INTERVAL)
    return {
        "budget": percent * budget.absolute(q.layers),
        "cost": a.percent(budget.cost),
        "expected cost": percent * float(q.expected_cost(q.cost_tables(budget.cost)).detach()),
        "low": float(low),
        "high": float(high),
        "P(cost<=limit)": probability_within(q, budget),
        **({} if held is None else validate(q, held)),
        "widths": {name: float(np.mean(bits)) for name, bits in a.widths.items()},
    }


def _framed(rows: Sequence[dict[str, Any]], cost: costs.Cost) -> pandas.DataFrame:
    frame = pandas.DataFrame(rows)
    frame.attrs["cost"] = getattr(cost, "__name__", str(cost))
    if "loss" in frame:
        worse = -frame["accuracy"] if "accuracy" in frame else frame["loss"]
        marks = is_dominated(frame["cost"].to_numpy(), worse.to_numpy())
        frame.insert(frame.columns.get_loc("widths"), "dominated", marks)
    return frame


def is_dominated(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return whether another point is no worse in both and better in one, bool of the points' shape.

    Args:
        cost: the cost of each point.
        loss: the loss of each point, less is better.

    Example:
        >>> is_dominated(np.array([1, 2, 3]), np.array([5, 6, 4])).tolist()
        [False, True, False]
    """
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return np.asarray((no_worse & better).any(0))
