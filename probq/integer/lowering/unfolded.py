"""This module says why a batch normalisation was not folded into a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probq.integer.lowering.exported import module_name, named_arguments, operation
from probq.network.tracing.layer import Layer

NORMALISES = ("batch_norm", "_native_batch_norm_legit_no_training")


def why_not_folded(node: Any, source: str, nodes: Sequence[Any], layers: Mapping[str, Layer]) -> str:
    """Return a reason why a normalisation was not folded, and what to do.

    Args:
        node: the normalisation in the exported graph.
        source: name of the layer whose sums it gets; empty if it gets none.
        nodes: the nodes of the graph.
        layers: by all names of their modules.
    """
    name, layer = module_name(node), layers.get(source)
    given = named_arguments(node)
    if given.get("training") or given["running_mean"] is None:
        return "it takes the statistics of each batch, which integers cannot; use track_running_stats=True"
    if not name or sum(_is_call(other, name, NORMALISES) for other in nodes) > 1:
        return "it is called more than once, and folds into one layer only; give each place a normalisation of its own"
    if layer is None:
        return "it does not directly follow a layer; put it behind a linear layer or a convolution"
    calls = [other for other in nodes if _is_call(other, source, ("linear", "conv"))]
    if len(calls) > 1:
        return f"layer {source} before it is called more than once; give each place a layer of its own"
    if sum(other.weight == layer.weight for other in {id(m): m for m in layers.values()}.values()) > 1:
        return f"the weight of layer {source} before it belongs to another layer too; give each a weight of its own"
    return f"what layer {source} before it computes is used elsewhere too; give each place a layer of its own"


def _is_call(node: Any, name: str, operations: tuple[str, ...]) -> bool:
    return node.op == "call_function" and module_name(node) == name and operation(node).startswith(operations)
