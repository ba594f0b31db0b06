"""The layers of an integer model are shown as plain numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.integer.model import IntegerModel
from probq.integer.node import Node
from probq.integer.operations import LAYERS
from probq.integer.packing import bits_of
from probq.integer.ranges import LAYERS as SUMMED
from probq.integer.ranges import accumulators


@dataclass(frozen=True)
class LayerNumbers:
    """These are the numbers of one layer of an integer model, None where the file does not say.

    Attributes:
        name, op: of the node.
        shape: the shape of the weight.
        weight_bits: mean width of the weight's codes in bits.
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
    return [
        _numbers(node, known.get(node.name, {}), _accumulator_bits(model, node))
        for node in model.nodes
        if node.op in LAYERS
    ]


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
    if node.op not in SUMMED or not node.bound:
        return None
    low, high = accumulators(node, model.ranges[node.inputs[0]])
    return max(-int(low.min(initial=0)), int(high.max(initial=0))).bit_length() + 1


def _numbers(node: Node, known: Mapping[str, Any], width: int | None) -> LayerNumbers:
    packing = node.packing_of("weight")
    bits = np.array([bits_of(levels) for levels in packing.codebooks])[packing.rung]
    return LayerNumbers(
        node.name,
        node.op,
        node.tensors["weight"].shape,
        float(np.mean(bits)),
        number(known, "input_bits"),
        width,
        number(known, "macs"),
        number(known, "bops"),
    )
