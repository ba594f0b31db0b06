"""This table says which function lowers which operation of an exported network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from probq.integer.lowering.operations.data_movement import MOVES, parts
from probq.integer.lowering.operations.elementwise import clamp, clamp_max, clip, hardtanh, same
from probq.integer.lowering.operations.joining import concat, copied, replaced, stack
from probq.integer.lowering.operations.pooling import adaptive_avg_pool, amax, amin, avg_pool, max_pool, mean, total
from probq.integer.lowering.operations.rearranging import REORDERED, unbind
from probq.integer.lowering.operations.values import Value

OPERATIONS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "relu": clip(0.0, None), "relu_": clip(0.0, None), "relu6": clip(0.0, 6.0), "relu6_": clip(0.0, 6.0),
        "clamp": clamp, "clamp_": clamp, "clamp_min": clamp, "clamp_max": clamp_max,
        "hardtanh": hardtanh, "hardtanh_": hardtanh,
        "contiguous": same, "clone": same,
        "detach": same, "detach_": same, "alias": same, "to": same, "type_as": same,
        "max_pool1d": max_pool, "max_pool2d": max_pool, "max_pool3d": max_pool,
        "avg_pool1d": avg_pool, "avg_pool2d": avg_pool, "avg_pool3d": avg_pool,
        "adaptive_avg_pool1d": adaptive_avg_pool, "adaptive_avg_pool2d": adaptive_avg_pool,
        "adaptive_avg_pool3d": adaptive_avg_pool, "mean": mean, "sum": total,
        "cat": concat, "stack": stack, "slice_scatter": replaced, "copy": copied,
        "amax": amax, "amin": amin,
        **MOVES, **REORDERED,
    }
)  # fmt: skip
# Those that give several tensors.
PARTS: Mapping[str, Callable[..., list[Value]]] = MappingProxyType(
    {"chunk": parts, "split": parts, "split_with_sizes": parts, "unbind": unbind}
)
