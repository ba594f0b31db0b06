"""ArviZ gets the posterior, as `InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x); only this module uses ArviZ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probq.decisions.assignment import Assignment
from probq.decisions.draw_warnings import count_untuned, warn_of_draws, warn_untuned
from probq.evaluation.diagnostics.chains import check_chains
from probq.evaluation.diagnostics.predictive import Predictive, draw_outputs, in_memory, predictive, targets_by_name
from probq.evaluation.diagnostics.table import CONVENTION
from probq.evaluation.diagnostics.width_draws import cost_of, draw_costs, draw_widths, network_order
from probq.network.quantized.quantized import Quantized
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError
from probq.utils.version import probq_version

Draws = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def to_arviz(
    q: Quantized | Sequence[Quantized],
    draws: int = 1000,
    seed: int = 0,
    *,
    batches: Iterable[Any] | None = None,
    log_likelihood: bool | None = None,
) -> Any:
    """Return draws for ArviZ, as `InferenceData` with ArviZ 0.x, as `xarray.DataTree` with 1.x.

    The draws are independent, from the whole posterior: those of `q.sample` keep the budget, these need not. Groups:

    * `posterior`, dimensions `chain` and `draw`: for every quantizer `NAME` of unknown width its width in bits `NAME`
      (one more dimension for channels with widths of their own; the mean where each weight has its own); `NAME.gates`,
      whether the gates up to each rung above the first are open (the share that is, where there are several);
      `NAME.scale`, the scale of the drawn rung (the geometric mean of several); and `cost` in percent of the 32-bit
      network;
    * `constant_data`: MACs and number of weights of each layer; `NAME` and `NAME.scale`, dimension `chain`, of widths
      that the plan or a decision fixed;
    * with `batches` also `observed_data`, `posterior_predictive` (targets drawn from the likelihood) and
      `log_likelihood`, each with the variable `y` and the dimension `observation`; where the network has several
      outputs, the first two have one for each, such as `y.boxes`, and `log_likelihood` is their sum.

    Attributes: temperature, convention, budget and versions. A width may be so sure that all of its draws are equal:
    the diagnostics of `arviz.summary` then divide by zero, while `arviz.summary(data, kind="stats")` and
    `probq.convergence` do not. `arviz.loo` supposes draws from the Bayesian posterior: at
    a temperature below 1 read it as a score, not as an estimate. ArviZ 1.x refuses it where most draws of a sharp
    posterior are equal.

    Args:
        q: a quantized network, or several restarts of one fit, which become chains (`probq.restarts`).
        draws: number of draws in each chain. With `batches` every draw runs over all of them.
        seed: makes them reproducible.
        batches: iterable of `(input, target)`; kept in memory.
        log_likelihood: whether to add `log_likelihood`, as `arviz.loo` and `arviz.compare` need; by default with
            `batches`.

    Warns:
        UserWarning: if a posterior was never fitted; with data, if draws have other widths than were tuned.

    Raises:
        ProbqError: if `draws` is not a positive integer, the log-likelihood is asked for without data, or chains
            differ in their plan, likelihood, temperature or budget.
    """
    import arviz
    import xarray

    chains = check_chains(q)
    check_number("seed", seed, 0)
    if log_likelihood and batches is None:
        raise ProbqError("the log-likelihood needs data: give to_arviz(..., batches=...), pairs of input and target")
    warn_of_draws(*chains)
    data = None if batches is None else in_memory(chains[0], batches)
    found = [_chain(chain, draws, seed + k, data) for k, chain in enumerate(chains)]
    attributes = _attributes(chains[0], str(arviz.__version__))
    every = [chain.widths for chain in found]
    groups = {"posterior": _posterior(chains, every)}
    if data is not None:
        strangers, predictives = sum(c.untuned for c in found), [c.met for c in found if c.met is not None]
        warn_untuned(strangers, draws * len(chains), "draws", "probq.to_arviz(q.at(q.mode()), ...)")
        groups |= _with_data(predictives, _observed(chains[0], data), log_likelihood is not False)
    groups["constant_data"] = _constants(chains, every)
    datasets = {name: group.assign_attrs(attributes) for name, group in groups.items()}
    inference_data = vars(arviz).get("InferenceData")  # 1.x answers getattr with a warning
    if inference_data is not None:
        return inference_data(**datasets, attrs=attributes)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attributes), **datasets})


def rhat_and_ess(values: np.ndarray) -> tuple[float, float]:
    """Return R-hat and effective sample size (bulk) of draws `[chains, draws]`.

    Where all draws are equal R-hat is 1; where chains are constant but differ it is infinite, and the size is the
    number of chains.

    Source: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner, 2021, "Rank-normalization, folding, and
    localization: An improved R-hat for assessing convergence of MCMC".
    """
    import arviz
    import xarray

    if (values == values.flat[0]).all():
        return 1.0, float(values.size)
    if (values == values[:, :1]).all():
        return float("inf"), float(len(values))
    dataset = xarray.Dataset({"x": (("chain", "draw"), values)})
    return float(arviz.rhat(dataset)["x"]), float(arviz.ess(dataset)["x"])


class _Chain(NamedTuple):
    """A chain has draws of widths, what they say about data if there is any, and how many were not tuned."""

    widths: Draws
    met: Predictive | None = None
    untuned: int = 0


def _chain(q: Quantized, draws: int, seed: int, data: list[tuple[Any, Tensor]] | None) -> _Chain:
    if data is None:
        return _Chain(draw_widths(q, draws, seed))
    parts, met, strangers = [], [], 0
    for number, assignments in enumerate(draw_outputs(q, draws, seed)):
        strangers += count_untuned(q, assignments)
        parts.append(_widths(q, assignments))
        met.append(predictive(q, assignments, data, seed + number))
    shares, widths = ({n: np.concatenate([p[k][n] for p in parts]) for n in parts[0][k]} for k in (0, 1))
    replicated = {name: np.concatenate([part.replicated[name] for part in met]) for name in met[0].replicated}
    together = Predictive(np.concatenate([p.log_likelihood for p in met]), replicated)
    return _Chain((shares, widths), together, strangers)


def _widths(q: Quantized, assignments: Sequence[Assignment]) -> Draws:
    """Return of assignments what `draw_widths` gives of the posterior."""
    shares, widths = {}, {}
    for name, quantizer in q.named_quantizers():
        bits = np.stack([np.asarray(a.widths[name]) for a in assignments])
        flat = bits.reshape(len(bits), -1)
        shares[name] = np.stack([(flat == b).mean(1) for b in quantizer.ladder.bits], 1)
        widths[name] = flat.mean(1) if bits.ndim > 2 else bits
    return shares, widths


def _posterior(chains: Sequence[Quantized], found: Sequence[Draws]) -> Any:
    import xarray

    q = chains[0]
    cost = np.stack([draw_costs(c, s, cost_of(c)) for c, (s, _) in zip(chains, found, strict=True)])
    free = [name for name in network_order(q) if q.quantizer(name).free]
    variables = [_widths_and_scales(chains, found, name) | _gates(q, found, name) for name in free]
    arrays = {key: array for of_one in variables for key, array in of_one.items()}
    return xarray.Dataset({**arrays, "cost": _array(cost, "percent")})


def _array(values: np.ndarray, units: str, coordinates: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Return draws `[chain, draw, ...]`, with the coordinates of further dimensions."""
    import xarray

    leading = {"chain": np.arange(values.shape[0]), "draw": np.arange(values.shape[1])}
    every = {**leading, **coordinates}
    return xarray.DataArray(values, every, tuple(every), attrs={"units": units})


def _widths_and_scales(chains: Sequence[Quantized], found: Sequence[Draws], name: str) -> dict[str, Any]:
    bits = np.stack([widths[name] for _, widths in found])
    channels = {f"{name}_channel": np.arange(bits.shape[2])} if bits.ndim > 2 else {}
    scales = np.stack([_scales(c, name, s[name], w[name]) for c, (s, w) in zip(chains, found, strict=True)])
    return {name: _array(bits, "bit", channels), f"{name}.scale": _array(scales, "real value of one step")}


def _gates(q: Quantized, found: Sequence[Draws], name: str) -> dict[str, Any]:
    reached = np.stack([shares[name][:, ::-1].cumsum(1)[:, ::-1][:, 1:] for shares, _ in found])
    opens = {f"{name}_opens": list(q.quantizer(name).ladder.bits[1:])}
    return {f"{name}.gates": _array(reached, "share of open gates", opens)}


@torch.no_grad()
def _scales(q: Quantized, name: str, shares: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the geometric mean of the scales of the drawn rungs, `[draws]`."""
    quantizer = q.quantizer(name)
    table = torch.log2(quantizer.scales().double()).cpu().numpy().reshape(len(quantizer.ladder), -1)
    if widths.ndim > 1 and table.shape[1] > 1:  # every channel on its own rung, with its own scale
        rungs = np.searchsorted(quantizer.ladder.bits, widths)
        return np.asarray(2.0 ** table[rungs, np.arange(widths.shape[1])].mean(1))
    return np.asarray(2.0 ** (shares @ table.mean(1)))


def _with_data(met: Sequence[Predictive], observed: Mapping[str, np.ndarray], log_likelihood: bool) -> dict[str, Any]:
    import xarray

    coordinates = {"observation": np.arange(len(next(iter(observed.values()))))}
    drawn_coordinates = {**coordinates, "chain": np.arange(len(met)), "draw": np.arange(len(met[0].log_likelihood))}
    dimensions = {
        name: ("observation", *(f"{name}_dim_{k}" for k in range(y.ndim - 1))) for name, y in observed.items()
    }
    drawn = {
        name: (("chain", "draw", *own), np.stack([part.replicated[name] for part in met]))
        for name, own in dimensions.items()
    }
    groups = {"posterior_predictive": xarray.Dataset(drawn, drawn_coordinates)}
    if log_likelihood:
        found = np.stack([part.log_likelihood for part in met])
        groups["log_likelihood"] = xarray.Dataset({"y": (("chain", "draw", "observation"), found)}, drawn_coordinates)
    seen = {name: (own, observed[name]) for name, own in dimensions.items()}
    return {**groups, "observed_data": xarray.Dataset(seen, coordinates)}


def _observed(q: Quantized, data: Sequence[tuple[Any, Any]]) -> dict[str, np.ndarray]:
    """Return the targets of all batches by name."""
    x, y = data[0]
    law = q.law(q.outputs([q.mode()], x)[0], y)
    parts = [targets_by_name(law, y) for _, y in data]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def _constants(chains: Sequence[Quantized], found: Sequence[Draws]) -> Any:
    import xarray

    q = chains[0]
    fixed = [name for name in network_order(q) if not q.quantizer(name).free]
    columns = {
        "macs": (("layer",), [layer.macs for layer in q.layers], {"units": "MAC"}),
        "weights": (("layer",), [layer.weights for layer in q.layers], {"units": "numbers"}),
    }
    layers = xarray.Dataset(columns, {"layer": [layer.name for layer in q.layers]})
    arrays = [_widths_and_scales(chains, found, name) for name in fixed]
    return layers.assign({key: a.isel(draw=0, drop=True) for of_one in arrays for key, a in of_one.items()})


def _attributes(q: Quantized, arviz_version: str) -> dict[str, Any]:
    return {
        "inference_library": "probq",
        "inference_library_version": probq_version(),
        "torch_version": str(torch.__version__),
        "arviz_version": arviz_version,
        "temperature": q.temperature,
        "convention": CONVENTION,
        "cost": getattr(cost_of(q), "__name__", str(cost_of(q))),
        "budget": repr(q.budget),
    }
