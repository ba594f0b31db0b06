"""The layer whose output channels another one reads is found by following autograd's graph of one run backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from probq.network.tracing.module_kinds import TRANSPOSED

# What maps a constant channel to a constant channel and leaves channels where they are, by autograd's names of it.
ELEMENTWISE = frozenset(
    [
        "Relu",
        "Hardtanh",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "Gelu",
        "Silu",
        "Mish",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Hardsigmoid",
        "Hardswish",
        "Clamp",
        "ClampMin",
        "ClampMax",
        "Neg",
        "Abs",
        "Exp",
        "Pow",
        "Clone",
        "Alias",
    ]
)
POOLS = frozenset(
    [
        "MaxPool1D",
        "MaxPool2DWithIndices",
        "MaxPool3DWithIndices",
        "AvgPool2D",
        "AvgPool3D",
        "AdaptiveAvgPool2D",
        "AdaptiveAvgPool3D",
        "AdaptiveMaxPool2D",
        "AdaptiveMaxPool3D",
        "MkldnnMaxPool2D",
        "Mean",
    ]
)
NORM_NODES = frozenset(["NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNorm"])
FLATTENS = frozenset(["View", "UnsafeView", "ReshapeAlias"])


def channel_source(module: Any, x: Tensor, made: Mapping[Any, tuple[str, Any]]) -> str | None:
    """Return the layer whose output channels `module` reads in `x`, each in equally many products; else None.

    Args:
        module: a linear or convolution layer.
        x: its input.
        made: name and module of the layers so far, by the graph node of their output.
    """
    if isinstance(module, nn.Embedding) or getattr(module, "groups", 1) != 1:
        return None
    node, flattened, pooled = x.grad_fn, False, False
    while node is not None and node not in made:
        kind = kind_of(node)
        if kind in FLATTENS:
            if flattened or not flattens(node, x):
                return None
            flattened = True
        elif pools(node):
            pooled = True
        elif kind not in ELEMENTWISE | NORM_NODES:
            return None
        before = [parent for parent, _ in node.next_functions if parent is not None]
        if kind in NORM_NODES:
            before = before[:1]  # its gain and shift are the others
        node = before[0] if len(before) == 1 else None
    if node is None:
        return None
    name, producer = made[node]
    return name if fits(module, producer, x, flattened, pooled) else None


def kind_of(node: Any) -> str:
    """Return autograd's name of what a node computes, such as `Relu`."""
    name: str = node.name()
    return name.rstrip("0123456789").removesuffix("Backward")


def pools(node: Any) -> bool:
    """Return whether a node pools places and leaves channels where they are."""
    kind = kind_of(node)
    return kind in POOLS and (kind != "Mean" or over_places(node))


def flattens(node: Any, x: Tensor) -> bool:
    """Return whether a view only joins all axes behind the batch, so that each channel's numbers stay together."""
    shape = tuple(getattr(node, "_saved_self_sym_sizes", ()))
    return len(shape) > 2 and x.dim() == 2 and x.shape[0] == shape[0]


def over_places(node: Any) -> bool:
    """Return whether a mean leaves the batch and the channels apart."""
    shape, axes = tuple(node._saved_self_sym_sizes), node._saved_dim or ()
    wrapped = {axis - 2**64 if axis >= 2**63 else axis for axis in axes}
    return bool(wrapped) and not {axis % len(shape) for axis in wrapped} & {0, 1}


def fits(module: Any, producer: Any, x: Tensor, flattened: bool, pooled: bool) -> bool:
    """Return whether the producer's channels are the axis that `module` sums over."""
    if isinstance(producer, nn.Embedding) or (isinstance(producer, TRANSPOSED) and producer.groups != 1):
        return False
    from_convolution, to_convolution = hasattr(producer, "kernel_size"), hasattr(module, "kernel_size")
    if from_convolution and to_convolution:
        return not flattened and module.in_channels == producer.out_channels
    if from_convolution:
        return x.dim() == 2 and module.in_features % producer.out_channels == 0
    return not (to_convolution or flattened or pooled) and module.in_features == producer.out_features
