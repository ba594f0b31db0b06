"""Some operations multiply matrices; this module says which, and how many multiply-accumulates (MACs) a call takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from probq.network.tracing.stand_ins import FUNCTIONS

VECTORS = frozenset({"mv", "addmv", "dot"})
NAMED = frozenset({"mm", "bmm", "addmm", "baddbmm", "convolution", *VECTORS})
# Functions that multiply with weights, or matrices with each other, by how their names begin.
MULTIPLY = ("linear", "conv", "embedding", "bilinear", "matmul", "__matmul__", "mm", "bmm", "einsum", "scaled_dot")
# Functions whose values are the network's own input no longer, by how their names begin.
COMPUTED = (
    "linear", "conv", "embedding", "bilinear", "batch_norm", "layer_norm", "group_norm", "instance_norm", "matmul",
    "__matmul__", "mm", "bmm", "einsum", "lstm", "gru", "rnn", "multi_head", "scaled_dot", "softmax", *FUNCTIONS,
)  # fmt: skip
PARTS = ("attention", "rnn", "lstm", "gru", "embedding_bag", "trilinear")


def is_product(func: Any) -> bool:
    """Return whether an operation multiplies matrices, or has such products inside."""
    name = func.overloadpacket.__name__.lstrip("_")
    return name in NAMED or any(part in name for part in PARTS)


def macs_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Return the MACs of one call, by torch's own count where there is one, 0 where nothing is known."""
    count = flop_registry.get(func.overloadpacket)
    if count is not None:
        return int(count(*args, **kwargs, out_val=out)) // 2
    name, tensors = func.overloadpacket.__name__, [a for a in args if isinstance(a, Tensor)]
    if name in VECTORS:
        return max(tensor.numel() for tensor in tensors)
    if "attention" in name and len(tensors) > 2:
        return int(sdpa_flop_count(*(tensor.shape for tensor in tensors[:3]))) // 2
    if "rnn" in name:
        weights = args[1] if isinstance(args[1], list | tuple) else args[1:3]
        return _rows(args[0]) * sum(weight.numel() for weight in weights if weight.dim() == 2)
    if "trilinear" in name:
        return _rows(args[0]) * int(args[1].numel())
    return 0


def _rows(x: Tensor) -> int:
    """Return how often a weight meets a tensor's last axis."""
    return x.numel() // x.shape[-1]
