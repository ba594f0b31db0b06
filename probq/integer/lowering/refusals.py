"""Operations without an exact integer form are refused in words that say what to do."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from probq.integer.lowering.exported import module_name, named_arguments, where_of
from probq.integer.lowering.operations.tables import TABULATED
from probq.integer.lowering.operations.values import refusal
from probq.network.explicit.modules import TURN
from probq.network.normalisers.kinds import SOFTMAXES
from probq.utils.errors import ProbqError

_RECURRENT = (
    "a recurrent module computes its products inside, where nothing can be rounded; take nn.LSTM or nn.GRU and call it "
    f"with a batch of sequences that are not packed, or take those of probq.nn. {TURN}"
)
_NORMED = "max_norm changes rows as they are looked up; rescale them once, and give the embedding no max_norm"
_MASKED = "it stays float; give it a plan, and no enable_gqa"
_MATRICES = (
    "give it a plan; two computed matrices must have the batch as first axis and as many axes as each other, constants "
    "must be one matrix (for one of each head take F.conv1d with groups), and the batch may not be summed over"
)
_COMPUTED = (
    "its gain and shift are computed, and are no parameters or buffers of the network; multiply and add them behind it"
)
_TRACKED = "it has statistics of its own, or a computed gain; use track_running_stats=False, or batch normalisation"
_PLANNED = "give the layer before it a plan with an activation width, such as Plan(activation=8)"
_RECIPROCAL = "the inverse of what is computed has an integer form as a table, torch.pow(x, -1), or in a quotient y / x"
_SIZES = "images are resampled by nearest, bilinearly or bicubically, without antialias; resize outside of the network"
_SPREAD = "use a normalisation, such as nn.LayerNorm without gain and shift, or a mean of magnitudes"
_ROOT = (
    "roots and variances have an integer form in a normalisation alone: call F.layer_norm or F.rms_norm, or write "
    "(x - x.mean(axis, keepdim=True)) / (x.var(axis, unbiased=False, keepdim=True) + eps).sqrt(), or x * torch.rsqrt("
    "x.pow(2).mean(axis, keepdim=True) + eps), with a number eps above 0 inside the root, and take no part elsewhere"
)
# Operations that people meet, and what to do about them.
INSTEAD = MappingProxyType(
    dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _RECURRENT)
    | dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _RECURRENT)
    | dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "group_norm", "native_group_norm"), _COMPUTED)
    | dict.fromkeys(("upsample_bicubic2d", "grid_sampler", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), _SIZES)
    | dict.fromkeys(("linalg_vector_norm", "norm"), _SPREAD)
    | dict.fromkeys(("std", "var", "std_mean", "var_mean", "sqrt", "rsqrt"), _ROOT)
    | {
        "reciprocal": _RECIPROCAL,
        "instance_norm": _TRACKED,
        "scaled_dot_product_attention": _MASKED,
    }
    | dict.fromkeys(("matmul", "mm", "bmm"), _MATRICES)
    | dict.fromkeys(("embedding_renorm", "embedding_renorm_"), _NORMED)
)


def no_input(name: str) -> ProbqError:
    """Return the error that says that a layer reads nothing which the network is called with."""
    return refusal(
        f"layer {name}",
        "it reads no input of the network, and what it gives meets what depends on one; compute that once, and keep it "
        "as a parameter, or let the plan return None for this layer",
    )


def check_not_random(node: Any) -> None:
    """Raise at an operation that draws random numbers when the network is evaluated.

    Raises:
        ProbqError: naming operation and module.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return
    given = named_arguments(node)
    if given.get("training", given.get("train", given.get("dropout_p", 1.0) > 0)):
        raise refusal(
            where_of(node),
            "it draws random numbers when the network is evaluated, as a dropout does that is never switched off; "
            "give it training=self.training, or take it out",
        )


def why_float(net: nn.Module, node: Any) -> str:
    """Return why a product with a weight stays float, and what to do."""
    if not isinstance(net.get_submodule(module_name(node)), nn.MultiheadAttention):
        return "it stays float; give it a plan"
    return (
        "attention computes its products inside, where nothing can be rounded; call it with a batch, without hooks, "
        f"add_bias_kv and add_zero_attn. {TURN}"
    )


def why_no_norm(node: Any) -> str:
    """Return why a normalisation has no integer form, and what to do."""
    given = named_arguments(node)
    if given.get("training") or given["running_mean"] is None:
        return "it takes the statistics of each batch, which integers cannot; use track_running_stats=True"
    return "the function is called without a module; use torch.nn.BatchNorm1d, BatchNorm2d or BatchNorm3d"


def results_of(node: Any, several: bool) -> list[torch.Tensor]:
    """Return the tensors that a node gives, those of real numbers alone where others are places of these.

    Raises:
        ProbqError: if they are of a type that nothing is computed in, or hold no number.
    """
    out, where = node.meta["val"], where_of(node)
    outs = [out] if isinstance(out, torch.Tensor) else [each for each in out if several or each.is_floating_point()]
    for each in outs:
        if each.is_complex() or (each.is_floating_point() and each.dtype not in (torch.float32, torch.float64)):
            raise refusal(where, f"it computes in {str(each.dtype).removeprefix('torch.')}")
        if each.numel() == 0:
            raise refusal(where, "it holds no number")
    return outs


def why_no_form(name: str) -> str:
    """Return why an operation has no integer form, and what to do."""
    if name in INSTEAD:
        return INSTEAD[name]
    if name.removeprefix("_") in SOFTMAXES:
        return "it is along the batch, or stays float; " + _PLANNED
    if name.removesuffix("_") in TABULATED:
        return "it stays float; " + _PLANNED
    return f"probq has no exact integer form of {name}; replace it, or end the network before it"
