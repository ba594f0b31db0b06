"""A float network gets more channels, or keeps some of those that it has; widening leaves its function as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from probq.network.channels.groups import ChannelGroup, channel_groups, is_depthwise
from probq.network.tracing.module_kinds import TRANSPOSED
from probq.network.tracing.plain import plain_copy
from probq.utils.arguments import check_number, is_count
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, call, tensors_in

MOST_DIFFERENCE = 1e-4  # of the largest output; what rounding leaves of equal functions

Done: TypeAlias = dict[tuple[int, str, int], tuple[Tensor, Tensor]]
"""Tensors that were changed: the old one, which is kept so that its `id` stays its own, and the new one."""


@torch.inference_mode(False)
def widen(net: nn.Module, example: Any, channels: Mapping[str, int], *, seed: int = 0) -> nn.Module:
    """Return a copy of a network in which named layers have more output channels and that computes the same.

    A new channel is a copy of an old one, drawn at random. What a reader did with the old channel is shared among its
    copies, in random parts that add up to one, so that they go apart in training:

        sum_c W[:, c] x_c = sum_j s_j W[:, c(j)] x_c(j),   sum of s_j over the copies j of c = 1.

    Layers whose outputs are added or multiplied channel by channel, or read by one layer in turn, depthwise
    convolutions between them, and layers of one weight widen together; normalisations and readers follow.

    Args:
        net: the float network; it is left untouched.
        example: a batch of inputs as in `quantize`.
        channels: the new number of output channels of some layers, by name; of layers that widen together one is
            enough.
        seed: of the copies and their parts.

    Raises:
        ProbqError: if a layer is unknown or has more channels already, its channels cannot change, or the copy does not
            compute the same.

    Source: T. Chen, I. Goodfellow, J. Shlens, 2016, "Net2Net: Accelerating Learning via Knowledge Transfer".

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.rand(5, 4)
        >>> wide = probq.widen(net, x, {"0": 12})
        >>> wide[0], bool((wide(x) - net(x)).abs().max() < 1e-5)
        (Linear(in_features=4, out_features=12, bias=True), True)
    """
    check_number("seed", seed, 0)
    groups, copied = _copied(net, example, channels, "widen")
    generator = torch.Generator().manual_seed(seed)
    wanted: dict[ChannelGroup, int] = {}
    for name, count in channels.items():
        group = groups[name]
        if not is_count(count, group.count):
            raise ProbqError(f"{name} has {group.count} channels; widen takes that number or more, not {count!r}")
        if wanted.setdefault(group, count) != count:
            raise ProbqError(f"{name} widens together with {_others(group, name)}, to one number of channels")
    for group, count in wanted.items():
        copies = torch.randint(group.count, (count - group.count,), generator=generator)
        index = torch.cat([torch.arange(group.count), copies])
        parts = torch.rand(count, generator=generator) + 0.5
        shares = parts / torch.zeros(group.count).index_add(0, index, parts)[index]
        _resize(copied, group, index, shares)
    names = ", ".join(channels)
    _check_ties(net, copied, names)
    _check_same(net, copied, example, names)
    return copied


@torch.inference_mode(False)
def narrow(net: nn.Module, example: Any, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy of a network in which named layers keep some of their output channels.

    What the others made is 0 for their readers. Layers that widen together (`widen`) lose the same channels;
    normalisations and readers follow.

    Args:
        net: the float network; it is left untouched.
        example: a batch of inputs as in `quantize`.
        kept: the channels that stay, counted from 0, by the name of a layer.

    Raises:
        ProbqError: if a layer is unknown, its channels cannot change, or the network does not run with fewer, or a
            channel is unknown, twice there, or none is left.

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> probq.narrow(net, torch.rand(5, 4), {"0": [0, 2, 5]})[2]
        Linear(in_features=3, out_features=3, bias=True)
    """
    groups, copied = _copied(net, example, kept, "narrow")
    wanted: dict[ChannelGroup, list[int]] = {}
    for name, some in kept.items():
        group, own = groups[name], list(some)
        if not own or len(set(own)) != len(own) or not all(is_count(k, 0) and k < group.count for k in own):
            raise ProbqError(
                f"{name} has {group.count} channels; narrow takes those to keep, numbers from 0 to {group.count - 1}, "
                f"each once, not {own}"
            )
        if wanted.setdefault(group, own) != own:
            raise ProbqError(f"{name} loses the same channels as {_others(group, name)}")
    for group, own in wanted.items():
        _resize(copied, group, torch.tensor(own), torch.ones(len(own)))
    names = ", ".join(kept)
    _check_ties(net, copied, names)
    _outputs(copied, example, names)
    return copied


def _copied(
    net: nn.Module, example: Any, channels: Mapping[str, Any], function: str
) -> tuple[dict[str, ChannelGroup], nn.Module]:
    """Return the groups of a network and a copy to change, or raise where a named layer's channels cannot change."""
    if not isinstance(net, nn.Module):
        raise ProbqError(f"{function} takes a torch.nn.Module, not {type(net).__name__}")
    copied, _ = plain_copy(net)
    groups = channel_groups(copied, example)
    for name in channels:
        if name not in groups:
            raise ProbqError(f"{function} knows no layer {name!r}; there are {', '.join(groups) or 'none'}")
        if groups[name].fixed:
            raise ProbqError(f"the number of channels of {name} cannot change: {groups[name].fixed}")
    return groups, copied


def _others(group: ChannelGroup, name: str) -> str:
    return " and ".join(maker for maker in group.makers if maker != name)


@torch.no_grad()
def _resize(net: nn.Module, group: ChannelGroup, index: Tensor, shares: Tensor) -> None:
    """Give a group the channels `index`, of which readers take shares."""
    modules: dict[str, Any] = dict(net.named_modules())
    done: Done = {}  # so that layers of one weight keep it
    for name in group.readers:
        _reread(modules[name], group.count, index, shares, done)
    for name in group.makers:
        module = modules[name]
        depthwise = is_depthwise(module)
        axis = 1 if isinstance(module, TRANSPOSED) and not depthwise else 0
        _select(module, "weight", index, axis, done)
        _select(module, "bias", index, 0, done)
        count = len(index)
        if isinstance(module, nn.Linear):
            module.out_features = count
        else:
            module.out_channels = count
            if depthwise:
                module.in_channels = module.groups = count
    for name in group.norms:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            _select(modules[name], tensor, index, 0, done)
        modules[name].num_features = len(index)


def _reread(module: Any, count: int, index: Tensor, shares: Tensor, done: Done) -> None:
    """Let a layer read other channels; a linear layer may read several numbers of each."""
    weight = module.weight
    axis = 0 if isinstance(module, TRANSPOSED) else 1
    places = weight.shape[axis] // count
    if (id(weight), "read", axis) not in done:
        apart = weight.unflatten(axis, (count, places)).index_select(axis, index.to(weight.device))
        shape = [1] * apart.dim()
        shape[axis] = -1
        apart = apart * shares.to(weight).reshape(shape)
        new = nn.Parameter(apart.flatten(axis, axis + 1), weight.requires_grad)
        done[id(weight), "read", axis] = (weight, new)
    _, module.weight = done[id(weight), "read", axis]
    if isinstance(module, nn.Linear):
        module.in_features = len(index) * places
    else:
        module.in_channels = len(index)


def _select(module: Any, name: str, index: Tensor, axis: int, done: Done) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    if (id(tensor), "made", axis) not in done:
        chosen = tensor.index_select(axis, index.to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            chosen = nn.Parameter(chosen, tensor.requires_grad)
        done[id(tensor), "made", axis] = (tensor, chosen)
    setattr(module, name, done[id(tensor), "made", axis][1])


def _check_ties(net: nn.Module, copied: nn.Module, names: str) -> None:
    """Raise unless the same modules share parameters in both networks."""
    lost = [pair for pair in _ties(net) if pair not in _ties(copied)]
    if lost:
        raise ProbqError(
            f"{lost[0][0]} is also {lost[0][1]}, and would not be with other channels of {names}; give both modules "
            "parameters of their own first, or change other layers"
        )


def _ties(net: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of names of one parameter."""
    first: dict[int, str] = {}
    every = net.named_parameters(remove_duplicate=False)
    return [(first[id(tensor)], name) for name, tensor in every if first.setdefault(id(tensor), name) != name]


@torch.no_grad()
def _check_same(net: nn.Module, copied: nn.Module, example: Any, names: str) -> None:
    """Raise unless both networks compute the same on the example."""
    for a, b in zip(_outputs(net, example, names), _outputs(copied, example, names), strict=True):
        if a.shape != b.shape or float((a - b).abs().max()) > MOST_DIFFERENCE * max(1.0, float(a.abs().max())):
            raise ProbqError(
                f"the network computes something else with other channels of {names}: they meet numbers that belong "
                "to no layer; widen others"
            )


@torch.no_grad()
def _outputs(net: nn.Module, example: Any, names: str) -> list[Tensor]:
    """Return all outputs of a network in evaluation mode, or raise where it does not run."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        return list(tensors_in(call(net, arguments(example))))
    except Exception as error:
        raise ProbqError(
            f"the network does not run with other channels of {names}, which meet numbers that belong to no layer, or "
            f"code that counts them: {error}"
        ) from error
    finally:
        for module in training:
            module.training = True
