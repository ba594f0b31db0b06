"""Neighbours are two layers whose channels meet behind functions that are positively homogeneous, and nowhere else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.program.foldable import tensors_of
from probq.network.program.program import Program
from probq.network.program.substitution import running
from probq.network.tracing.arguments import hook_input
from probq.network.tracing.channel_sources import FLATTENS, NORM_NODES, POOLS, fits, flattens, over_places
from probq.network.tracing.layer import Layer
from probq.training.ptq.layer_inputs import takes_rows
from probq.utils.structures.tensors import arguments, call

# f(s x) = s f(x) for s > 0, by autograd's names
HOMOGENEOUS = frozenset(["Relu", "LeakyRelu", "PreluKernel", "Abs", "Neg", "Clone", "Alias"])


def neighbours(q: Program, x: Any) -> list[tuple[Layer, Layer]]:
    """Return the pairs of layers between which a factor of each channel can be moved without changing the network.

    Args:
        q: a network.
        x: a batch that shows what it computes.
    """
    once = Counter(layer.weight for layer in q.layers)
    layers = {m.name: m for m in q.layers if once[m.weight] == 1 and m.weight in q.weights and takes_rows(q, m)}
    calls, uses = _graph(q, list(layers), x)
    made = {out.grad_fn: layers[name] for name, _, out in calls if out.grad_fn is not None}
    times = Counter(name for name, _, _ in calls)
    found = []
    for name, entered, _ in calls:
        before = _before(q, layers[name], entered, made, uses)
        if before is not None and times[name] == times[before.name] == 1:
            found.append((before, layers[name]))
    return found


def _graph(q: Program, names: list[str], x: Any) -> tuple[list[tuple[str, Tensor, Tensor]], Counter[Any]]:
    """Return name, input and output of each call of a layer, and how often each node of autograd's graph is used."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    handles = []
    for name in names:

        def keep(module: nn.Module, args: Any, kwargs: Any, out: Tensor, name: str = name) -> None:
            calls.append((name, hook_input(args, kwargs), out))

        handles.append(q.net.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
    trainable = [(p, p.requires_grad) for p in q.net.parameters() if p.is_floating_point()]
    for parameter, _ in trainable:
        parameter.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad(), q.evaluating(), running(x):
            output = call(q.net, arguments(x))
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)
    return calls, _uses(tensors_of(output))


def _uses(outputs: list[Tensor]) -> Counter[Any]:
    """Return how often each node of the graph behind some tensors is used, by others or as one of them."""
    nodes = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    uses, seen = Counter[Any](nodes), set(nodes)
    while nodes:
        for parent, _ in nodes.pop().next_functions:
            if parent is not None:
                uses[parent] += 1
                if parent not in seen:
                    seen.add(parent)
                    nodes.append(parent)
    return uses


def _before(q: Program, layer: Layer, x: Tensor, made: dict[Any, Layer], uses: Counter[Any]) -> Layer | None:
    """Return the layer whose channels alone another one reads, and which nothing else reads; else None."""
    module, flattened, pooled = q.net.get_submodule(layer.name), False, False
    norms = 0
    node: Any = x.grad_fn
    while node is not None and node not in made:
        kind = node.name().rstrip("0123456789").removesuffix("Backward")
        flat, norm = kind in FLATTENS, kind in NORM_NODES
        pool = kind in POOLS and (kind != "Mean" or over_places(node))
        if uses[node] != 1 or norms or not (kind in HOMOGENEOUS or flat or norm or pool):
            return None  # what lies in front of a normalisation is its layer, or nothing
        if flat and (flattened or not flattens(node, x)):
            return None
        flattened, pooled, norms = flattened or flat, pooled or pool, norms + norm
        node = node.next_functions[0][0]
    if node is None or uses[node] != 1:
        return None
    before = made[node]
    producer: Any = q.net.get_submodule(before.name)
    return before if norms == _folded(q, before) and _channels_fit(module, producer, x, flattened, pooled) else None


def _folded(q: Program, layer: Layer) -> int:
    """Return how many normalisations between two layers belong to the first one; 2 where none could take a factor."""
    if layer.norm is None:
        return 0
    norm: Any = q.net.get_submodule(layer.norm)
    return 1 if norm.affine else 2


def _channels_fit(module: Any, producer: Any, x: Tensor, flattened: bool, pooled: bool) -> bool:
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return fits(module, producer, x, flattened, pooled)
    depthwise = groups == module.in_channels and hasattr(producer, "kernel_size")
    return depthwise and not flattened and bool(groups == producer.out_channels)


def columns(weight: Tensor, layer: Layer, channels: int) -> Tensor:
    """Return a view of a weight `[rows, channels that it reads, others]`.

    Args:
        weight: of the layer.
        layer: reads the channels, all of them or, in a depthwise convolution, each by itself.
        channels: number of channels.
    """
    return weight.view(1 if layer.shape[1] == 1 else layer.shape[0], channels, -1)
