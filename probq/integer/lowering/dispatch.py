"""This table says which function lowers which operation of an exported network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from probq.integer.lowering.composed.comparisons import COMPARISONS
from probq.integer.lowering.composed.extrema import EXTREMA, WITH_INDICES, absolute, amax, amin, sign
from probq.integer.lowering.composed.indexing import INDEXED
from probq.integer.lowering.composed.masks import MASKS
from probq.integer.lowering.composed.resampling import RESAMPLED
from probq.integer.lowering.composed.running import cumsum
from probq.integer.lowering.operations.arithmetic import ARITHMETIC
from probq.integer.lowering.operations.data_movement import MOVES, parts
from probq.integer.lowering.operations.elementwise import clip, hardtanh, same
from probq.integer.lowering.operations.joining import JOINING
from probq.integer.lowering.operations.pooling import avg_pool, max_pool, mean, total
from probq.integer.lowering.operations.rearranging import REORDERED, unbind
from probq.integer.lowering.operations.values import Value

OPERATIONS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "relu": clip(0.0, None), "relu_": clip(0.0, None), "relu6": clip(0.0, 6.0), "relu6_": clip(0.0, 6.0),
        "hardtanh": hardtanh, "hardtanh_": hardtanh,
        "contiguous": same, "clone": same,
        "detach": same, "detach_": same, "alias": same, "to": same, "_to_copy": same, "type_as": same,
        "max_pool1d": max_pool, "max_pool2d": max_pool, "max_pool3d": max_pool,
        "avg_pool1d": avg_pool, "avg_pool2d": avg_pool, "avg_pool3d": avg_pool, "mean": mean, "sum": total,
        "cumsum": cumsum,
        "amax": amax, "amin": amin, "abs": absolute, "abs_": absolute, "sign": sign, "sign_": sign,
        **MOVES, **REORDERED, **RESAMPLED,
    }
)  # fmt: skip
# Those that take constants, which may be tensors of the network.
WITH_CONSTANTS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {**ARITHMETIC, **EXTREMA, **JOINING, **INDEXED, **COMPARISONS, **MASKS}
)
# Those that give several tensors.
PARTS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"chunk": parts, "split": parts, "split_with_sizes": parts, "unbind": unbind, **WITH_INDICES}
)


def is_known(name: str) -> bool:
    """Return whether an operation has an integer form of its own."""
    return any(name in known for known in (OPERATIONS, WITH_CONSTANTS, PARTS))
