"""At one low width a budget buys channels: those that the posterior closes go, and where it wants all, it gets more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from probq import cost as costs
from probq.codebooks.ladder import ladder
from probq.cost.budget import Budget
from probq.evaluation.studies.network_choices import check_bops_limit
from probq.network.channels.groups import ChannelGroup, channel_groups
from probq.network.channels.resize import narrow, widen
from probq.network.quantize import quantize
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.plan import Plan
from probq.network.tracing.layer import Layer
from probq.network.tracing.trace import layers
from probq.training.fit import fit
from probq.utils.arguments import check_number, is_count
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number

WANTED = 0.9  # mean probability of a channel to be there, from which on a layer gets more
FACTOR = 1.5  # of the number of channels
KEPT = 0.5  # probability of a channel to be there
ENDS = 8  # bits of the network's own input


@dataclass(frozen=True)
class ChannelSearch:
    """A channel search ends with a float network whose channels a budget pays for.

    Attributes:
        net: the network, trained at the width of the search; `quantize` and `fit` take it from there.
        rounds: for each round the number of channels of every layer that could change, and the mean probability that
            one of them is there, by name.
    """

    net: nn.Module = field(repr=False)
    rounds: tuple[Mapping[str, tuple[int, float]], ...]


def search_channels(
    net: nn.Module,
    example: Any,
    batches: Iterable[Any],
    budget: Budget,
    epochs: int = 10,
    *,
    bits: int = 4,
    rounds: int = 3,
    **options: Any,
) -> ChannelSearch:
    """Return a network with other numbers of channels, found at one low width of all weights and inputs under a limit.

    In each round every output channel has a gate between 0 bits and `bits`, fitted under the limit on BOPs without
    those of closed channels. Where the mean probability of a layer's channels to be there is 0.9 or more, the layer
    gets half as many again, which compute the same as before (`widen`); channels with less than 0.5 go (`narrow`). The
    last round keeps the most probable channels, as many as the limit allows. Layers that share channels change
    together, and keep a channel that one of them wants.

    Args:
        net: the trained float network; it is left untouched.
        example: a batch of inputs as in `quantize`.
        batches: as in `fit`.
        budget: one limit on BOPs; what closed channels would have cost does not count.
        epochs: of each round.
        bits: width of all weights and inputs, 1 to 8; the network's own input has 8.
        rounds: number of fits, 1 or more.
        options: see `fit`.

    Raises:
        ProbqError: if no layer's channels can change, a number is out of range, or the limit is not one on BOPs or
            below the cost of one channel in each layer. Also as `fit`.

    Source: S. Park, B. Kwon, J. Lim, K. Sim, T.-H. Kim, J. Choi, 2022, "Automatic Network Adaptation for Ultra-Low
    Uniform-Precision Quantization" (more channels where the search wants all); gates of channels as in M. van Baalen
    et al., 2020, "Bayesian Bits: Unifying Quantization and Pruning".

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.rand(16, 4), torch.arange(16) % 3
        >>> found = probq.search_channels(net, x, [(x, y)], probq.Budget(percent=3), 1, rounds=1, progress=False)
        >>> found.net[0].out_features == found.net[2].in_features <= 8
        True
    """
    check_number("bits", bits, 1)
    if not is_count(rounds, 1) or bits > ENDS:
        raise ProbqError(f"a search for channels has 1 round or more and 1 to {ENDS} bits, not {rounds!r} and {bits!r}")
    check_bops_limit(budget, "channels")
    limit = budget.absolute(layers(net, example))
    pruned = Budget(limit=limit, cost=costs.pruned_bops)
    data = batches if hasattr(batches, "__len__") else list(batches)
    told = []
    for k in tqdm(range(rounds), desc="channels", unit="round", disable=not options.get("progress", True)):
        groups = {name: group for name, group in channel_groups(net, example).items() if not group.fixed}
        if not groups:
            raise ProbqError("the number of channels can change in no layer; probq.widen says why, layer by layer")
        if _cost(narrow(net, example, {name: [0] for name in groups}), example, bits) > limit:
            raise ProbqError(
                f"one channel in each layer at {bits} bits costs more than the limit of {format_number(limit)} BOPs; "
                "raise it, or give fewer bits"
            )
        q = _fitted(net, example, data, pruned, epochs, groups, bits, options)
        there = {name: _probabilities(q, groups[name]) for name in groups}
        told.append({name: (len(own), float(own.mean())) for name, own in there.items()})
        net = _within(q.net, example, there, bits, limit) if k == rounds - 1 else _resized(q.net, example, there)
    return ChannelSearch(net, tuple(told))


def _fitted(
    net: nn.Module,
    example: Any,
    data: Iterable[Any],
    budget: Budget,
    epochs: int,
    groups: Mapping[str, ChannelGroup],
    bits: int,
    options: Mapping[str, Any],
) -> Quantized:
    """Return the posterior over the channels of layers that can change."""
    q = quantize(net, example, _planner(bits, groups))
    fit(q, data, budget, epochs, **{"search": 1.0, **options})
    return q


def _probabilities(q: Quantized, group: ChannelGroup) -> np.ndarray:
    """Return for each channel of a group the probability that the layer which wants it most makes it, `[channels]`."""
    closed = []
    for maker in group.makers:
        law = q.quantizer(f"{maker}.weight").widths().probs.detach().cpu().double().numpy()
        closed.append(law.reshape(group.count, -1)[:, 0])
    return 1 - np.min(closed, 0)


def _resized(net: nn.Module, example: Any, there: Mapping[str, np.ndarray]) -> nn.Module:
    """Return the network of the next round: without closed channels, and with more where all are wanted."""
    wider = {name: round(FACTOR * len(own)) for name, own in there.items() if own.mean() >= WANTED}
    kept = {name: _above(own, KEPT) for name, own in there.items() if name not in wider}
    return widen(narrow(net, example, kept), example, wider)


def _within(net: nn.Module, example: Any, there: Mapping[str, np.ndarray], bits: int, limit: float) -> nn.Module:
    """Return the network with the most probable channels, one or more in each layer and as many as the limit allows."""
    levels = np.unique(np.concatenate(list(there.values())))
    low, high, best = 0, len(levels), None  # levels[high] would keep one channel in each layer
    while low <= high:
        middle = (low + high) // 2
        least = levels[middle] if middle < len(levels) else np.inf
        tried = narrow(net, example, {name: _above(own, least) for name, own in there.items()})
        if _cost(tried, example, bits) <= limit:
            best, high = tried, middle - 1
        else:
            low = middle + 1
    assert best is not None  # one channel in each layer keeps the limit
    return best


def _above(probabilities: np.ndarray, least: float) -> list[int]:
    """Return the channels of at least a probability, and the most probable one in any case."""
    return sorted({*np.flatnonzero(probabilities >= least).tolist(), int(probabilities.argmax())})


def _cost(net: nn.Module, example: Any, bits: int) -> float:
    """Return the BOPs with all weights and inputs at one width, the network's own input at 8 bits."""
    return quantize(net, example, _planner(bits)).mode().cost()


def _planner(bits: int, gated: Collection[str] = ()) -> Callable[[Layer], Plan]:
    """Return the plan of one width, with a gate for each output channel of some layers."""

    def plan(layer: Layer) -> Plan:
        inputs = ladder(bits, signed=layer.smallest < 0)
        return Plan(ladder(0, bits), inputs, gates="channel") if layer.name in gated else Plan(ladder(bits), inputs)

    return plan
