"""A network is copied here with the modules spelled out that multiply tensors inside."""

from __future__ import annotations

import torch
from torch import nn

from probq.network.explicit.modules import can_be_explicit, spell_out
from probq.network.tracing.plain import plain_copy
from probq.utils.errors import ProbqError


@torch.inference_mode(False)
def explicit(net: nn.Module) -> nn.Module:
    """Return a copy of a network in which attention and recurrent modules are made of layers, products and functions.

    Every `nn.MultiheadAttention`, also in `nn.TransformerEncoderLayer`, `nn.TransformerDecoderLayer` and
    `nn.Transformer`, becomes a `probq.nn.MultiheadAttention` with the linear layers `q_proj`, `k_proj`, `v_proj` and
    `out_proj`, every `nn.LSTM` and `nn.GRU` one of `probq.nn` with linear layers `ih` and `hh` for each layer and
    direction. Outputs are equal to rounding errors; `load_state_dict` takes the original's parameters as well.
    `quantize` does the same to its own copy. Modules of a class of their own, with hooks, or whose matrices belong to
    other modules too stay as they are, as does attention with `add_bias_kv` or `add_zero_attn`. At padded places a
    `nn.TransformerEncoder` gives what it gives in training mode, not zeros.

    Args:
        net: the network; it is left untouched. The copy is what `quantize` takes of it: without wrappers, and with
            weights that are plain parameters.

    Raises:
        ProbqError: if `net` is no `torch.nn.Module`, or cannot be taken as it is.

    Source: A. Vaswani et al., 2017, "Attention Is All You Need".

    Example:
        >>> import torch, probq
        >>> net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> copied, x = probq.explicit(net), torch.randn(3, 5, 8)
        >>> copied.self_attn.q_proj
        Linear(in_features=8, out_features=8, bias=True)
        >>> bool((copied(x) - net(x)).abs().max() < 1e-5)
        True
    """
    if not isinstance(net, nn.Module):
        raise ProbqError(f"explicit takes a torch.nn.Module, not {type(net).__name__}")
    copied, _ = plain_copy(net)
    return spell_out(copied, set(can_be_explicit(copied)))
