"""The layers of an integer model are shown as plain numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.integer.model import IntegerModel
from probq.integer.node import Node
from probq.integer.operations import LAYERS
from probq.integer.packing import VectorPacking, bits_of
from probq.integer.ranges import LAYERS as SUMMED
from probq.integer.ranges import accumulators

PRODUCTS = ("product", "matmul")


@dataclass(frozen=True)
class LayerNumbers:
    """These are the numbers of one layer of an integer model, None where the file does not say.

    Attributes:
        name, op: of the node.
        shape: the shape of the weight, of a product of two values that of the second one.
        weight_bits: mean width of the weight's codes in bits, of a product the width of the second value.
        input_bits: width of the input in bits.
        accumulator_bits: signed bits that hold every accumulated sum, as proven.
        macs: multiply-accumulates for one example.
        bops: bit operations for one example.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    weight_bits: float
    input_bits: float | None
    accumulator_bits: int | None
    macs: float | None
    bops: float | None


def layers_of(model: IntegerModel) -> list[LayerNumbers]:
    """Return the layers in the order of the model."""
    known = {name: entry for entry in _entries(model.metadata) if isinstance(name := entry.get("name"), str)}
    shown = [node for node in model.every_node if node.op in (*LAYERS, *PRODUCTS)]
    return [_numbers(model, node, known.get(node.name, {})) for node in shown]


def number(entry: Mapping[str, Any], name: str) -> float | None:
    """Return a number of free metadata, or None where there is none."""
    value = entry.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _entries(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what lowering noted on each layer; metadata is free, so nothing in it is sure."""
    found = metadata.get("layers")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _accumulator_bits(model: IntegerModel, node: Node) -> int | None:
    """Return the accumulator's bits as proven here; the `bound` in a file is what its writer claims."""
    if node.op in PRODUCTS:
        return model.ranges[node.name].bound.bit_length() + 1
    if node.op not in SUMMED or not node.bound:
        return None
    low, high = accumulators(node, model.ranges[node.inputs[0]])
    return max(-int(low.min(initial=0)), int(high.max(initial=0))).bit_length() + 1


def _weight(model: IntegerModel, node: Node, known: Mapping[str, Any]) -> tuple[tuple[int, ...], float]:
    """Return shape and mean width of what a layer multiplies with."""
    if node.op in PRODUCTS:
        second = model.ranges[node.inputs[1]]
        return second.shape, number(known, "weight_bits") or float((second.high - second.low).bit_length())
    packing = node.packing_of("weight")
    if isinstance(packing, VectorPacking):
        return node.tensors["weight"].shape, packing.bits_per_value
    bits = np.array([bits_of(levels) for levels in packing.codebooks])[packing.rung]
    return node.tensors["weight"].shape, float(np.mean(bits))


def _numbers(model: IntegerModel, node: Node, known: Mapping[str, Any]) -> LayerNumbers:
    return LayerNumbers(
        node.name,
        node.op,
        *_weight(model, node, known),
        number(known, "input_bits"),
        _accumulator_bits(model, node),
        number(known, "macs"),
        number(known, "bops"),
    )
