"""What a random model holds, in words: a test of exporters is worth what its models hold."""

import math
from collections.abc import Iterator

import numpy as np

from probq import IntegerModel
from probq.integer import Node
from probq.integer.packing import bits_of


def features(model: IntegerModel) -> set[str]:
    """Operations, widths, geometry, signs and multipliers of a model."""
    return {feature for node in model.every_node for feature in (f"op {node.op}", *_of(node))}


def _of(node: Node) -> Iterator[str]:
    if "weight" in node.tensors:
        yield from _weight(node)
    if node.op == "conv":
        yield from _conv(node)
    if node.op in ("max_pool", "sum_pool"):
        yield from _window(node)
    if node.op == "requantize":
        yield from _requantize(node)
    if node.op in ("input", "requantize") and not node.attributes.get("index"):
        lo, hi, binary = node.attributes["lo"], node.attributes["hi"], node.attributes.get("step", 1) == 2
        yield f"{node.op} of {(hi - lo).bit_length()} bits"
        yield f"{node.op} {'binary' if binary else 'signed' if lo < 0 else 'unsigned'}"


def _weight(node: Node) -> Iterator[str]:
    packing, weight = node.packing_of("weight"), node.tensors["weight"]
    for k in np.unique(packing.rung):
        yield f"weight of {bits_of(packing.codebooks[k])} bits"
    yield f"widths of a {('tensor', 'channel', 'weight')[(packing.rung.size > 1) + (packing.rung.size > len(weight))]}"
    if weight.size > 2 and np.isin(weight, [weight.min(), weight.max()]).all() and weight.min() < weight.max():
        yield "extreme weights"
    if weight.size and weight.min() < 0 < weight.max():
        yield "weights of both signs"


def _conv(node: Node) -> Iterator[str]:
    groups = node.attributes["groups"]
    inside = node.tensors["weight"].shape[0 if node.attributes["transposed"] else 1]
    inside //= groups if node.attributes["transposed"] else 1
    yield "transposed" if node.attributes["transposed"] else "not transposed"
    yield "one group" if groups == 1 else "depthwise" if inside == 1 else "groups"
    yield f"conv on {len(node.attributes['stride'])} axes"
    yield from _window(node)


def _window(node: Node) -> Iterator[str]:
    spec = node.attributes
    for name in ("stride", "dilation"):
        yield from (f"{node.op} {name} {size}" for size in spec.get(name, []))
    if len(set(spec["stride"])) > 1:
        yield f"{node.op} strides differ"
    ends = [end for pair in spec["padding"] for end in pair]
    yield f"{node.op} padding {'none' if not any(ends) else 'even' if len(set(ends)) == 1 else 'uneven'}"


def _requantize(node: Node) -> Iterator[str]:
    multiplier, shift = node.tensors["multiplier"].reshape(-1).tolist(), node.tensors["shift"]
    kinds = {m > 0 and math.log2(m).is_integer() for m in multiplier}
    yield from ("multiplier a power of two" if kind else "multiplier no power of two" for kind in kinds)
    if min(multiplier) < 0:
        yield "multiplier negative"
    yield "multiplier of its own" if node.tensors["multiplier"].ndim else "multiplier for all"
    if shift.min() == 0:
        yield "no shift"


BITS = range(1, 17)
EVERYTHING = frozenset(
    {f"{what} of {bits} bits" for what in ("weight", "requantize", "input") for bits in BITS}
    | {f"{what} {sign}" for what in ("requantize", "input") for sign in ("signed", "unsigned", "binary")}
    | {f"{op} stride {size}" for op in ("conv", "max_pool", "sum_pool") for size in (1, 2, 3)}
    | {f"{op} padding {kind}" for op in ("conv", "max_pool", "sum_pool") for kind in ("none", "even", "uneven")}
    | {f"{op} strides differ" for op in ("conv", "max_pool", "sum_pool")}
    | {f"conv dilation {size}" for size in (1, 2)}
    | {f"widths of a {what}" for what in ("tensor", "channel", "weight")}
    | {f"conv on {count} axes" for count in (1, 2, 3)}
    | {"one group", "groups", "depthwise", "transposed", "not transposed", "extreme weights", "weights of both signs"}
    | {f"multiplier {kind}" for kind in ("a power of two", "no power of two", "negative", "of its own", "for all")}
    | {"weight of 0 bits", "no shift"}
)
