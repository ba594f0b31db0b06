"""The temperature is chosen on validation data by a short path of fits, each started from the one before."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
from scipy.special import logsumexp

from probq.cost.budget import Budget
from probq.decisions.widths import tuned_widths
from probq.evaluation.diagnostics.held_out import validate
from probq.evaluation.diagnostics.predictive import draw_outputs, in_memory, predictive
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.fit import fit
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError

TEMPERATURES = (0.0001, 0.001, 0.01, 0.1)


class Tuned(NamedTuple):
    """This is what `tune_temperature` found.

    Attributes:
        table: a row for each temperature: `nll` (negative log-likelihood of the averaged predictive for one validation
            example, in nats), `mode nll` and, for classes, `mode accuracy` of the decided network, and `cost`, its
            cost in percent at the end of the fit.
        best: the temperature of the lowest `nll`.
        q: the network fitted at it.
    """

    table: pandas.DataFrame
    best: float
    q: Quantized


def tune_temperature(
    q: Quantized,
    batches: Iterable[Any],
    validation: Iterable[Any],
    temperatures: Sequence[float] = TEMPERATURES,
    *,
    budget: Budget | None = None,
    epochs: int = 3,
    draws: int = 16,
    seed: int = 0,
    **options: Any,
) -> Tuned:
    """Return the temperature whose averaged predictive `mean over draws of p(y | x, draw)` fits validation data best.

    From the coldest to the warmest, each fit starts from the one before; `q` is left as it is. The draws keep the
    budget. Where a fit ended by tuning one choice of widths, its draws are of codes at those, as in
    `probq.ensemble(q.at(q.mode()), ...)`; where it learned widths to its end, of widths as well. Measure the winner on
    a third set of data: its validation figure was selected.

    Args:
        q: from `quantize`, or fitted already.
        batches: as in `fit`.
        validation: like `batches`, but other data; kept in memory.
        temperatures: to try, above 0.
        budget: as in `fit`.
        epochs: the epochs of each fit.
        draws: networks averaged over.
        seed: the seed of fits and draws.
        options: see `fit` and `steps`. Codes are drawn throughout, `rounding=False`, unless they say otherwise, since a
            temperature tells how far codes stray.

    Raises:
        ProbqError: as `fit`; or if no temperature is given, one is given twice or is not positive, or a validation
            figure is NaN, with its temperature.

    Source: F. Wenzel et al., 2020, "How Good is the Bayes Posterior in Deep Neural Networks Really?".
    """
    check_posterior(q, "tune_temperature")
    path, chosen = _path(temperatures), {"rounding": False, **options}
    train, held = Batches(batches, q.device), in_memory(q, validation)
    rows, fits, own = {}, {}, q
    for temperature in path:
        own = copy.deepcopy(own)
        history = fit(own, train, budget, epochs, temperature=temperature, seed=seed, **chosen)
        rows[temperature] = _scores(own, held, draws, seed) | {"cost": history.steps[-1].percent}
        if math.isnan(rows[temperature]["nll"]):
            raise ProbqError(f"the validation nll at temperature {temperature} is NaN; check the likelihood")
        fits[temperature] = own
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("temperature")
    best = min(path, key=lambda temperature: rows[temperature]["nll"])
    return Tuned(frame, best, fits[best])


def _path(temperatures: Sequence[float]) -> list[float]:
    path = [float(t) for t in temperatures if isinstance(t, int | float) and not isinstance(t, bool)]
    if not path or len(path) != len(temperatures) or len(set(path)) != len(path):
        raise ProbqError(f"temperatures must be different positive numbers, at least one, not {list(temperatures)}")
    if not all(t > 0 and math.isfinite(t) for t in path):
        raise ProbqError(f"temperatures must be positive numbers, not {list(temperatures)}")
    return sorted(path)


def _scores(q: Quantized, held: list[Any], draws: int, seed: int) -> dict[str, float]:
    source = q if tuned_widths(q) is None else q.at(q.mode())
    parts = [predictive(source, some, held).log_likelihood for some in draw_outputs(source, draws, seed, q.budget)]
    log_likelihood = np.concatenate(parts)
    nll = -float((logsumexp(log_likelihood, axis=0) - math.log(draws)).mean())
    decided = validate(q, Batches(held, q.device))
    accuracy = {"mode accuracy": decided["accuracy"]} if "accuracy" in decided else {}
    return {"nll": nll, "mode nll": decided["loss"], **accuracy}
