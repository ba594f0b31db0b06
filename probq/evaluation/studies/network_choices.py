"""The networks that a search chooses from: numbers of channels, widths, and what they cost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from probq.cost.budget import Budget
from probq.cost.layer_costs import FLOAT_BITS, bops
from probq.network.channels.groups import ChannelGroup, channel_groups, is_depthwise
from probq.network.channels.resize import narrow, widen
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.module_kinds import channel_axis_of
from probq.network.tracing.trace import layers
from probq.training.refinement.evidence.space import State, WidthSpace
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number


def check_bops_limit(budget: Any, what: str) -> None:
    """Raise unless a budget is one limit on BOPs, of a search for `what`."""
    if not isinstance(budget, Budget) or budget.cost is not bops or budget.probability is not None:
        raise ProbqError(
            f"a search for {what} has a limit on BOPs: give one Budget(percent=...) or Budget(limit=...) without cost "
            f"and probability, not {budget!r:.120}"
        )


Counts = Mapping[str, tuple[int, ...]]  # numbers of channels to choose from, by the name of a layer
TRIES = 2  # for each random network


@dataclass(frozen=True)
class NetworkSpace:
    """A space of networks holds numbers of channels for each layer that can change, and widths for each quantizer.

    Attributes:
        choices: options of channels come first, then those of widths; the limit is on BOPs.
        channels: names of the layers whose channels can change, one of those that change together.
    """

    choices: WidthSpace
    channels: tuple[str, ...]

    def parts(self, choice: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
        """Return the channels and the widths of a choice, as `choices.widths` gives it for a state."""
        channels = {name: int(choice[name]) for name in self.channels}
        return channels, {name: bits for name, bits in choice.items() if name not in channels}

    def cost(self, state: State) -> float:
        """Return the BOPs of a state."""
        ((cost, _),) = self.choices.limits
        return float(cost(np.array([state]))[0])

    def state(self, channels: Mapping[str, int], widths: Mapping[str, Any]) -> State:
        """Return the state of channels and widths.

        Raises:
            ProbqError: if one is missing, or not among the options.
        """
        given, state = {**widths, **channels}, []
        for name, options in zip(self.choices.names, self.choices.options, strict=True):
            if given.get(name) not in options:
                raise ProbqError(f"{name} has the choices {', '.join(map(str, options))}, not {given.get(name)!r}")
            state.append(options.index(given[name]))
        return tuple(state)

    def draws(self, number: int, random: np.random.Generator) -> list[State]:
        """Return different random states in which nothing can be a step larger; fewer if there are not as many."""
        found: dict[State, None] = {}
        for _ in range(TRIES * number):
            if len(found) == number:
                break
            found[self._spent([int(random.integers(len(own))) for own in self.choices.options], random)] = None
        return list(found)

    def _spent(self, state: list[int], random: np.random.Generator) -> State:
        """Return a state with random steps down until it keeps the limit, and then all steps up that do."""
        while not self.choices.keeps(tuple(state)):
            state[random.choice([place for place, option in enumerate(state) if option])] -= 1
        for place in random.permutation(len(state)):
            for option in range(state[place] + 1, len(self.choices.options[place])):
                if not self.choices.keeps((*state[:place], option, *state[place + 1 :])):
                    break
                state[place] = option
        return tuple(state)


def network_space(q: Quantized, net: nn.Module, example: Any, factors: Sequence[float], budget: Budget) -> NetworkSpace:
    """Return the networks that have a float network's channels times one of the factors, and widths on its ladders.

    Args:
        q: the float network, quantized.
        net: the float network.
        example: a batch of inputs as in `quantize`.
        factors: of the numbers of channels, which are rounded, and 1 at least.
        budget: the limit on BOPs; percentages are of the network as it is.

    Raises:
        ProbqError: if factors are no positive numbers, no channels can change, channels or weights have widths of their
            own, or the limit is below the cost of the smallest network.
    """
    if not factors or not all(is_real(factor) and factor > 0 for factor in factors):
        raise ProbqError(f"factors are positive numbers such as 0.5, 1 and 1.5, not {factors!r}")
    if any(quantizer.gates for _, quantizer in q.named_quantizers()):
        raise ProbqError('a search for networks has one width for each tensor: give a plan with gates="tensor"')
    counts = {
        name: tuple(sorted({max(1, round(factor * group.count)) for factor in factors}))
        for name, group in _groups(net, example).items()
    }
    if not counts:
        raise ProbqError("the number of channels can change in no layer; probq.widen says why, layer by layer")
    sites = dict(q.named_sites())
    options = (*counts.values(), *(quantizer.ladder.bits for quantizer in sites.values()))
    flat = tuple(np.zeros(len(own)) for own in options)
    limit = budget.absolute(q.layers)
    cost = NetworkBops(q, net, example, counts)
    choices = WidthSpace((*counts, *sites), options, flat, ((cost, limit),), q.sites)
    least = float(cost(np.zeros((1, len(options)), dtype=np.int64))[0])
    if least > limit:
        raise ProbqError(
            f"the smallest network costs {format_number(least)} BOPs, more than the limit of {format_number(limit)}; "
            "raise it, or give smaller factors or narrower ladders"
        )
    return NetworkSpace(choices, tuple(counts))


class NetworkBops:
    """BOPs of a network are found from what each number of channels alone makes of the MACs of each layer.

    Channels of different layers multiply: a layer that makes `a` and reads `b` times as many has `a b` times the MACs.

    Args:
        q: the network as it is, quantized.
        net: the float network.
        example: a batch of inputs.
        counts: numbers of channels to choose from.
    """

    def __init__(self, q: Quantized, net: nn.Module, example: Any, counts: Counts) -> None:
        self.layers = q.layers
        sites = dict(q.named_sites())
        self.places = {name: place for place, name in enumerate((*counts, *sites))}
        self.places |= {name: self.places[site] for name, site in q.sites.items()}
        self.bits = {name: np.asarray(quantizer.ladder.bits) for name, quantizer in q.named_quantizers()}
        self.macs: dict[str, list[tuple[int, np.ndarray]]] = {layer.name: [] for layer in q.layers}
        for name, own in counts.items():
            of_count = [
                {layer.name: layer.macs for layer in layers(resized(net, example, {name: count}), example)}
                for count in own
            ]
            for layer in q.layers:
                ratios = np.array([macs[layer.name] for macs in of_count]) / max(layer.macs, 1)
                self.macs[layer.name].append((self.places[name], ratios))

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return the BOPs `[N]` of states `[N, places]`."""
        total = np.zeros(len(states))
        for layer in self.layers:
            macs = np.full(len(states), float(layer.macs))
            for place, ratios in self.macs[layer.name]:
                macs *= ratios[states[:, place]]
            weight, own = (self._bits(name, states) for name in (layer.weight, layer.input))
            total += np.rint(macs) * (bops(layer, weight, own) / max(layer.macs, 1))
        return total

    def _bits(self, name: str | None, states: np.ndarray) -> np.ndarray:
        if name not in self.bits:
            return np.full(len(states), FLOAT_BITS)
        return np.asarray(self.bits[name][states[:, self.places[name]]])


def resized(net: nn.Module, example: Any, channels: Mapping[str, int]) -> nn.Module:
    """Return a copy of a float network with other numbers of channels, by the name of a layer.

    Where there are fewer, those stay that have the largest weights, times the gain of their normalisation; where there
    are more, the copy computes the same as before (`widen`).

    Source: H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf, 2017, "Pruning Filters for Efficient ConvNets".
    """
    groups = _groups(net, example)
    fewer = {name: count for name, count in channels.items() if count < groups[name].count}
    more = {name: count for name, count in channels.items() if count > groups[name].count}
    kept = {name: _largest(net, groups[name], count) for name, count in fewer.items()}
    return widen(narrow(net, example, kept), example, more)


def _groups(net: nn.Module, example: Any) -> dict[str, ChannelGroup]:
    """Return the groups of channels that can change, each by its first layer."""
    return {group.makers[0]: group for group in channel_groups(net, example).values() if not group.fixed}


def _largest(net: nn.Module, group: ChannelGroup, count: int) -> list[int]:
    modules: dict[str, Any] = dict(net.named_modules())
    size: Any = 0
    for name in group.makers:
        module = modules[name]
        axis = 0 if is_depthwise(module) else channel_axis_of(module)
        size = size + module.weight.detach().movedim(axis, 0).flatten(1).norm(dim=1)
    for norm in (modules[name] for name in group.norms):
        if norm.affine and norm.track_running_stats:
            size = size * norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    return sorted(size.argsort(descending=True, stable=True)[:count].tolist())
