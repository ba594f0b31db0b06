"""A layer is shown here what enters it, in float and as decided, as rows that its weights are multiplied with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.network.program.decided_codes import decided_output
from probq.network.program.folding import per_channel
from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.network.tracing.arguments import hook_input
from probq.network.tracing.layer import Layer
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments

MOST_ROWS = 4096  # of a layer; more change little


def takes_rows(q: Program, layer: Layer) -> bool:
    """Tell whether a layer is linear or a convolution of one or two axes: a product of rows with a matrix."""
    module = q.net.get_submodule(layer.name)
    plain_padding = getattr(module, "padding_mode", "zeros") == "zeros"
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and plain_padding and layer.plain


@torch.no_grad()
def layer_rows(reference: Program, q: Program, layer: Layer, inputs: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Return the rows that enter a layer, `[groups, rows, weights of a channel]`: of the float network, and as decided.

    Args:
        reference: the network whose float weights are meant.
        q: a decided network.
        layer: one that `takes_rows`.
        inputs: batches of inputs.

    Raises:
        ProbqError: if none of them reaches the layer.
    """
    kept = list(inputs)
    plain, quantized = _caught(reference, layer, kept, False), _caught(q, layer, kept, True)
    chosen = torch.linspace(0, plain.shape[1] - 1, min(MOST_ROWS, plain.shape[1]), device=plain.device).long()
    return plain[:, chosen], quantized[:, chosen]


def float_weight(q: Program, layer: Layer) -> Tensor:
    """Return a layer's weight with the gain of a folded normalisation."""
    weight = q.net.get_parameter(layer.weight).detach()
    folded = q.fold(layer.weight)
    return weight if folded is None else weight * per_channel(folded[0].gain.detach(), layer)


@torch.no_grad()
def entering(q: Program, name: str, inputs: Iterable[Any], decided: bool) -> Tensor:
    """Return all numbers that enter a module, before anything rounds them, as one axis.

    Args:
        q: a network.
        name: of the module.
        inputs: batches of inputs.
        decided: whether the network runs as decided, or in float.
    """
    caught: list[Tensor] = []

    def catch(module: Any, args: Any, kwargs: Any) -> None:
        caught.append(hook_input(args, kwargs).detach().reshape(-1).clone())  # what comes next may work in place

    handle = q.net.get_submodule(name).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        _run(q, inputs, decided)
    finally:
        handle.remove()
    return torch.cat(caught)


@torch.no_grad()
def call_order(q: Program, names: Iterable[str], x: Any) -> list[str]:
    """Return the names of modules in the order in which the float network first calls them on a batch."""
    order: dict[str, None] = {}
    handles = []
    for name in names:
        module = q.net.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name)))
    try:
        _run(q, [x], decided=False)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def _run(q: Program, inputs: Iterable[Any], decided: bool) -> None:
    """Run the network on batches, as decided or in float."""
    with q.evaluating():
        for x in inputs:
            with running(x):
                if decided:
                    decided_output(q, arguments(x))
                else:
                    substitute(q.net, {}, {}, {}, *arguments(x))


def _caught(q: Program, layer: Layer, inputs: Iterable[Any], decided: bool) -> Tensor:
    """Return the rows of all calls of a layer while the network runs."""
    module = q.net.get_submodule(layer.name)
    forward, caught = module.forward, list[Tensor]()

    def catch(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        caught.append(_rows(module, x.detach()).clone())
        return forward(x, *args, **kwargs)

    module.forward = catch
    try:
        _run(q, inputs, decided)
    finally:
        del module.forward  # the class's own again
    if not caught:
        raise ProbqError(f"no example reaches {layer.name}; give those on which the whole network runs")
    return torch.cat(caught, 1)


def _rows(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    spatial = len(module.kernel_size)
    x = x.unsqueeze(-2) if spatial == 1 else x
    options = {"dilation": module.dilation, "stride": module.stride}
    pads = module._reversed_padding_repeated_twice
    x = F.pad(x, (*pads, 0, 0) if spatial == 1 else tuple(pads))
    one = (1,) * (2 - spatial)
    kernel = (*one, *module.kernel_size)
    columns = F.unfold(x, kernel, **{k: (*one, *v) for k, v in options.items()})  # [N, C k, L]
    groups = columns.reshape(len(x), module.groups, -1, columns.shape[-1])
    return groups.permute(1, 0, 3, 2).reshape(module.groups, -1, groups.shape[2])
