"""The posterior over widths in tables: a data frame for reading, and draws for ArviZ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import torch

from probq import cost as costs
from probq import decide, solve
from probq.budget import Budget
from probq.errors import ProbqError
from probq.layers import Layer
from probq.program import Program
from probq.quantizer import Quantizer
from probq.versions import probq_version
from probq.weight_quantizer import WeightQuantizer

CONVENTION = "BOP = MACs * weight bits * input bits; percentages refer to 32-bit weights and inputs"
MOST_NUMBERS = 2**23  # random numbers held at once


def table(q: Program) -> pandas.DataFrame:
    """The posterior over widths, a row for each quantizer in the order of the network.

    Columns, for a width `W` in bits. Where channels or weights have widths of their own, it is the width of a gate
    picked at random, so that `Var W = E[Var(W | gate)] + Var(E[W | gate])`:

    * `layer`, `kind` ("weight" or "input"), `MACs` for one example, of all layers that use the quantizer;
    * `P(b)`: probability of `b` bits, NaN where `b` is not on the ladder;
    * `mean bits` and `sd bits` of `W`; `entropy` in bits, the mean over gates;
    * `mode`: bits decided within `q.budget`, as in `q.mode()`, the mean over gates;
    * `cost share`: percent of the expected cost that falls on the layers that use the quantizer.

    `.attrs` holds `expected cost percent`, `cost` (its name), `temperature`, `budget` (its text, or None) and, with a
    budget, `P(cost<=limit)` of a draw.

    Args:
        q: a quantized network, fitted or not.

    Raises:
        ProbqError: if `q.budget` is below the cheapest reachable cost.
    """
    probs, modes, expected = _probs(q), decided_widths(q, q.budget), expected_costs(q)
    widths = sorted({bits for _, quantizer in q.named_quantizers() for bits in quantizer.ladder.bits})
    total = sum(expected.values())
    rows = {}
    for name in network_order(q):
        users = [layer for layer in q.layers if name in (layer.weight, layer.input)]
        share = 100 * sum(expected[layer.name] for layer in users) / total if total else 0.0
        rows[name] = {
            "layer": ", ".join(layer.name for layer in users),
            "kind": "weight" if name in q.weight_names else "input",
            "MACs": sum(layer.macs for layer in users),
            **_law(q.quantizer(name), probs[name], widths),
            "mode": float(np.mean(modes[name])),
            "cost share": share,
        }
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("quantizer")
    frame.attrs.update(_attributes(q, total))
    return frame


def text(frame: pandas.DataFrame) -> str:
    """What `table` gave, in columns of fixed width, probabilities with three decimals."""
    shown = frame.drop(columns="layer").rename(columns={"cost share": "cost %"})
    decimals = {"mean bits": 2, "sd bits": 2, "entropy": 2, "mode": 2, "cost %": 1}
    for column in shown.columns.difference(["kind", "MACs"]):
        digits = decimals.get(column, 3)
        shown[column] = [f"{v:.{digits}f}" if v == v else "-" for v in shown[column]]
    shown["MACs"] = [f"{macs:,}" for macs in shown["MACs"]]
    return str(shown.rename_axis(None).to_string(max_colwidth=40))


def _law(quantizer: Quantizer, probs: np.ndarray, widths: list[int]) -> dict[str, float]:
    """Probabilities, moments and entropy of the rows `[gates, B]`."""
    bits = np.array(quantizer.ladder.bits, dtype=float)
    share = dict(zip(quantizer.ladder.bits, probs.mean(0), strict=True))
    mean = probs @ bits
    variance = (probs @ bits**2 - mean**2).mean() + mean.var()
    entropy = -(probs * np.log2(np.where(probs > 0, probs, 1))).sum(1).mean()
    return {
        **{f"P({b})": float(share.get(b, np.nan)) for b in widths},
        "mean bits": float(mean.mean()),
        "sd bits": float(np.sqrt(max(variance, 0.0))),
        "entropy": float(abs(entropy)),
    }


def _attributes(q: Program, total: float) -> dict[str, Any]:
    cost = cost_of(q)
    attributes = {
        "expected cost percent": 100 * total / costs.full(q.layers, cost),
        "cost": getattr(cost, "__name__", str(cost)),
        "temperature": q.temperature,
        "budget": None if q.budget is None else repr(q.budget),
    }
    if q.budget is not None:
        attributes["P(cost<=limit)"] = decide.probability_within(q, q.budget)
    return attributes


def network_order(q: Program) -> list[str]:
    """Names of the quantizers in the order in which the example reached them, a layer's weight before its input."""
    names = [name for layer in q.layers for name in (layer.weight, layer.input) if name is not None and name in q]
    return list(dict.fromkeys(names))


def cost_of(q: Program) -> costs.Cost:
    """The cost that a network was last fitted for; bit operations without a budget."""
    return costs.bops if q.budget is None else q.budget.cost


def expected_costs(q: Program) -> dict[str, float]:
    """Exact expected cost of each layer by name, in the unit of `cost_of(q)`."""
    shares = _shares(q)
    return {layer.name: float(_pair(layer, shares, table)) for layer, table in _cost_tables(q, cost_of(q))}


def _shares(q: Program) -> dict[str, np.ndarray]:
    """Mean over gates of the probability of each rung, `[B]`, by quantizer."""
    return {name: probs.mean(0) for name, probs in _probs(q).items()}


def _cost_tables(q: Program, cost: costs.Cost) -> Iterator[tuple[Layer, np.ndarray]]:
    for layer, pairs in q.cost_tables(cost):
        yield layer, pairs.cpu().numpy()


def _pair(layer: Layer, shares: dict[str, np.ndarray], table: np.ndarray) -> Any:
    """`sum_ij shares(weight)_i shares(input)_j table_ij` over the last axes."""
    certain = np.ones(1)
    weight, x = shares.get(layer.weight, certain), shares.get(layer.input or "", certain)
    return ((weight @ table) * x).sum(-1)


def _probs(q: Program) -> dict[str, np.ndarray]:
    """Probability of each rung, float64 `[gates, B]`, by quantizer."""
    with torch.no_grad():
        return {
            name: quantizer.probs().double().cpu().numpy().reshape(-1, len(quantizer.ladder))
            for name, quantizer in q.named_quantizers()
        }


def decided_widths(q: Program, budget: Budget | None) -> dict[str, Any]:
    """Bits of every quantizer, an int or `[gates]`, as `q.mode(budget)` decides them; needs no codes.

    Raises:
        ProbqError: if the budget is below the cheapest reachable cost.
    """
    if decide.decided(q):
        bits = {name: np.array(q.quantizer(name).ladder.bits)[p.argmax(1)] for name, p in _probs(q).items()}
        return {name: int(b[0]) if len(b) == 1 else b for name, b in bits.items()}
    discrete = decide.problem_of(q, costs.bops if budget is None else budget.cost)
    limit = 2 * discrete.full + 1 if budget is None else budget.absolute(q.layers)
    return dict(discrete.widths(solve.most_probable(discrete, limit)[0]))


def draw_widths(q: Program, draws: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Independent draws of widths from the posterior, whether or not they keep a budget.

    Args:
        q: a quantized network.
        draws: number of draws.
        seed: makes them reproducible.

    Returns:
        For each quantizer the share of its gates on each rung `[draws, B]`, and the drawn bits: `[draws]`, or
        `[draws, channels]`; where each weight has its own, their mean `[draws]`.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ProbqError(f"draws is a number of draws, 1 or more, not {draws!r}")
    generator = np.random.default_rng(seed)
    shares, widths = {}, {}
    for name, probs in _probs(q).items():
        quantizer = q.quantizer(name)
        bits = np.array(quantizer.ladder.bits)
        rungs = list(_rung_draws(probs, draws, generator))
        shares[name] = np.concatenate([np.stack([(r == k).mean(1) for k in range(len(bits))], 1) for r in rungs])
        if _own_widths(quantizer):
            widths[name] = shares[name] @ bits
        else:
            widths[name] = np.concatenate([bits[r] for r in rungs])
            widths[name] = widths[name] if quantizer.gates else widths[name][:, 0]
    return shares, widths


def _rung_draws(probs: np.ndarray, draws: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Drawn rungs `[some draws, gates]`, all draws in parts."""
    cumulative = probs.cumsum(1)[:, :-1]
    rows = max(1, MOST_NUMBERS // max(1, cumulative.size))
    for first in range(0, draws, rows):
        u = generator.random((min(rows, draws - first), len(probs), 1))
        yield (u >= cumulative).sum(2).astype(np.int8)


def _own_widths(quantizer: Quantizer) -> bool:
    """Whether each weight has a width of its own."""
    return isinstance(quantizer, WeightQuantizer) and bool(quantizer.gates) and quantizer.gates == quantizer.shape


def draw_costs(q: Program, shares: dict[str, np.ndarray], cost: costs.Cost) -> np.ndarray:
    """Cost of drawn widths in percent of the 32-bit network, `[draws]`.

    Args:
        q: a quantized network.
        shares: from `draw_widths`.
        cost: the cost.
    """
    draws = len(next(iter(shares.values())))
    total = np.zeros(draws) + sum(_pair(layer, shares, pairs) for layer, pairs in _cost_tables(q, cost))
    return 100 * total / costs.full(q.layers, cost)


def to_arviz(q: Program, draws: int = 1000, seed: int = 0) -> Any:
    """Draws of widths for ArviZ: `InferenceData` with ArviZ 0.x, `xarray.DataTree` with 1.x.

    Group `posterior`: for every quantizer its width in bits (`chain`, `draw`, and one dimension for channels with
    widths of their own; the mean width where each weight has its own), and `cost` in percent of the 32-bit network.
    The draws are independent, from the whole posterior: those of `q.sample` keep the budget, these need not. Group
    `constant_data`: MACs of each layer. Attributes: temperature, convention, budget and versions.

    Args:
        q: a quantized network.
        draws: number of draws, all in one chain.
        seed: makes them reproducible.

    Raises:
        ProbqError: if `draws` is not a positive integer.
    """
    import arviz
    import xarray

    shares, widths = draw_widths(q, draws, seed)
    coordinates: dict[str, Any] = {"chain": [0], "draw": np.arange(draws)}
    variables: dict[str, Any] = {}
    for name in network_order(q):
        channels = (f"{name}_channel",) if widths[name].ndim > 1 else ()
        coordinates |= {dimension: np.arange(widths[name].shape[1]) for dimension in channels}
        variables[name] = (("chain", "draw", *channels), widths[name][None], {"units": "bit"})
    variables["cost"] = (("chain", "draw"), draw_costs(q, shares, cost_of(q))[None], {"units": "percent"})
    macs = {"macs": (("layer",), [layer.macs for layer in q.layers], {"units": "MAC"})}
    attributes = _arviz_attributes(q, str(arviz.__version__))
    groups = {
        "posterior": xarray.Dataset(variables, coordinates, attributes),
        "constant_data": xarray.Dataset(macs, {"layer": [layer.name for layer in q.layers]}, attributes),
    }
    inference_data = vars(arviz).get("InferenceData")  # 1.x answers getattr with a warning
    if inference_data is not None:
        return inference_data(**groups, attrs=attributes)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attributes), **groups})


def _arviz_attributes(q: Program, arviz_version: str) -> dict[str, Any]:
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
