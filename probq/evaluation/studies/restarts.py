"""Restarts repeat a fit from several starting points and show whether they agree."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas
import torch

from probq.cost.budget import Budget
from probq.decisions.draw_warnings import warn_of_draws
from probq.evaluation.diagnostics.chains import check_chains
from probq.evaluation.diagnostics.inference_data import rhat_and_ess
from probq.evaluation.diagnostics.table import table
from probq.evaluation.diagnostics.width_draws import cost_of, draw_costs, draw_widths, network_order
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.fit import fit
from probq.utils.arguments import check_number, is_count
from probq.utils.errors import ProbqError
from probq.utils.paths import target_path

MOST_RHAT = 1.1
LEAST_DRAWS = 4
LEAST_SHARE = 5.0  # percent of the cost below which a layer's widths hardly matter


def restarts(
    q: Quantized,
    batches: Iterable[Any],
    budget: Budget | None = None,
    epochs: int = 10,
    *,
    chains: int = 4,
    seed: int = 0,
    spread: float = 1.0,
    checkpoint: str | PathLike[str] | None = None,
    **options: Any,
) -> list[Quantized]:
    """Return several fits of one network, each from another start and with another seed; `q` is left as it is.

    The starts are overdispersed: to every gate's log-odds a draw from `Normal(0, spread)` is added. Pass the result to
    `probq.convergence`, or to `probq.to_arviz`, which makes a chain of each.

    Args:
        q: from `quantize`, or any network to start from.
        batches: as in `fit`.
        budget: as in `fit`.
        epochs: as in `fit`, for each restart.
        chains: number of restarts, 2 or more.
        seed: the seed of the first restart; the others count on from it.
        spread: standard deviation of the starting log-odds.
        checkpoint: a folder, in which each restart has a folder of checkpoints as in `fit`: the same call made again
            goes on where it was stopped or killed.
        options: see `fit` and `steps`.

    Returns:
        The fitted networks.

    Warns:
        UserWarning: if restarts disagree on widths of a layer that holds more than 5 % of the expected cost: R-hat
            above 1.1. Also as `fit`.

    Raises:
        ProbqError: as `fit`; or if there are fewer than two chains, or the spread is not a number of 0 or more.
    """
    if not is_count(chains, 2):
        raise ProbqError(f"restarts takes a number of chains, 2 or more, not {chains!r}")
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < float("inf"):
        raise ProbqError(f"spread is a standard deviation of log-odds, 0 or more, not {spread!r}")
    check_posterior(q, "restarts")
    check_number("seed", seed, 0)
    data = batches if hasattr(batches, "__len__") else list(batches)
    fitted = []
    for k in range(seed, seed + chains):
        own = _started(q, spread, k)
        kept = None if checkpoint is None else target_path(checkpoint) / f"restart-{k}"
        fit(own, data, budget, epochs, seed=k, checkpoint=kept, **options)
        fitted.append(own)
    disagreeing = [f"{name} (R-hat {rhat:.3g})" for name, rhat in _disagreeing(convergence(fitted)).items()]
    if disagreeing:
        warnings.warn(
            f"the restarts disagree on {', '.join(disagreeing)}: widths there depend on the start. Fit longer (epochs) "
            "or with a larger share of search (search=...); if they still disagree, several choices are equally good: "
            "keep the restart with the lowest validation loss, or average over all of them",
            UserWarning,
            stacklevel=2,
        )
    return fitted


def convergence(chains: Sequence[Quantized], draws: int = 1000, seed: int = 0) -> pandas.DataFrame:
    """Return whether restarts agree, a row for each quantizer and one for `cost`.

    Columns, for the width in bits (the mean over gates where there are several), or the cost in percent:

    * `rhat`: 1 where the chains agree; above 1.01 they differ in distribution, above 1.1 clearly (ArviZ:
      rank-normalised, split); infinite where each chain is sure of something else;
    * `ess`: effective number of independent draws over all chains (ArviZ: bulk);
    * `chain 0`, `chain 1`, ..: mean of each chain;
    * `cost share`: percent of the expected cost on the layers that use the quantizer, mean over chains.

    Args:
        chains: from `restarts`, two or more.
        draws: number of draws from each, 4 or more.
        seed: makes them reproducible.

    Warns:
        UserWarning: if a chain was never fitted.

    Raises:
        ProbqError: if there are fewer than two chains or four draws, or chains differ in plan, likelihood, temperature
            or budget.

    Source: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner, 2021, "Rank-normalization, folding, and
    localization: An improved R-hat for assessing convergence of MCMC".
    """
    fitted = check_chains(chains)
    check_number("seed", seed, 0)
    if len(fitted) < 2:
        raise ProbqError("convergence compares two chains or more; make them with probq.restarts")
    if not is_count(draws, LEAST_DRAWS):
        raise ProbqError(
            f"R-hat compares halves of chains; draws takes a number of {LEAST_DRAWS} or more, not {draws!r}"
        )
    warn_of_draws(*fitted)
    values = [_values(q, draws, seed + k) for k, q in enumerate(fitted)]
    shares = [_shares(q) for q in fitted]
    rows = {}
    for name in values[0]:
        drawn = np.stack([value[name] for value in values])
        rhat, ess = rhat_and_ess(drawn)
        means = {f"chain {k}": float(mean) for k, mean in enumerate(drawn.mean(1))}
        share = float(np.mean([of.get(name, 100.0) for of in shares]))
        rows[name] = {"rhat": rhat, "ess": ess, **means, "cost share": share}
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("quantizer")


def _disagreeing(frame: pandas.DataFrame) -> dict[str, float]:
    wide = frame[(frame["cost share"] > LEAST_SHARE) & (frame["rhat"] > MOST_RHAT)]
    return {str(name): float(rhat) for name, rhat in wide["rhat"].items() if name != "cost"}


def _values(q: Quantized, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Return drawn widths of every quantizer in bits and costs in percent, each `[draws]`."""
    shares, _ = draw_widths(q, draws, seed)
    bits = {name: shares[name] @ np.array(q.quantizer(name).ladder.bits, dtype=float) for name in network_order(q)}
    return {**bits, "cost": draw_costs(q, shares, cost_of(q))}


def _shares(q: Quantized) -> dict[str, float]:
    return {str(name): float(share) for name, share in table(q)["cost share"].items()}


@torch.no_grad()
def _started(q: Quantized, spread: float, seed: int) -> Quantized:
    own, generator = copy.deepcopy(q), torch.Generator().manual_seed(seed)
    for _, quantizer in own.named_sites():
        if quantizer.free:
            noise = torch.randn(quantizer.logits.shape, generator=generator)
            quantizer.logits.add_(spread * noise.to(quantizer.logits))
    return own
