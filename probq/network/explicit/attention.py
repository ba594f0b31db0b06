"""Attention with several heads is spelled out here as linear layers, two products and a softmax."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExplicitAttention(nn.Module):
    """An explicit attention computes what `nn.MultiheadAttention` does, and each of its matrices is a linear layer.

    Calls with a mask, or without a batch, are left to torch's function, which computes the same in one piece.

    Args:
        original: what it takes sizes, options and the values of all parameters from.

    Attributes:
        q_proj, k_proj, v_proj: linear layers of the query, the key and the value.
        out_proj: the linear layer of the output, with the original's own parameters.

    Source: A. Vaswani et al., 2017, "Attention Is All You Need".
    """

    # `nn.TransformerEncoderLayer` has a fused way of its own, which it does not take where these say so.
    _qkv_same_embed_dim = False
    in_proj_weight = in_proj_bias = bias_k = bias_v = None

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = original.embed_dim, original.num_heads, original.head_dim
        self.kdim, self.vdim = original.kdim, original.vdim
        self.dropout, self.batch_first = original.dropout, original.batch_first
        apart = (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
        weights = apart if original.in_proj_weight is None else _parts(original.in_proj_weight)
        biases = (None, None, None) if original.in_proj_bias is None else _parts(original.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)
        self.train(original.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return the output and, if they are wanted, the weights of the values, as the original does."""
        if not is_plain_call(query, key_padding_mask, attn_mask, is_causal):
            options = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
            return self._in_one_piece(query, key, value, **options, **masks)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        weights = torch.softmax((q @ k.transpose(-2, -1)) * self.head_dim**-0.5, -1)
        if self.training and self.dropout:
            weights = F.dropout(weights, self.dropout)
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, weights.mean(1) if average_attn_weights else weights

    def _heads(self, x: Tensor) -> Tensor:
        """Return `[batch, heads, places, numbers]` of `[batch, places, heads * numbers]`."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _in_one_piece(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """Return what torch's function gives."""
        turned = self.batch_first and query.dim() == 3
        if turned:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        layers = (self.q_proj, self.k_proj, self.v_proj)
        bias = None if self.q_proj.bias is None else torch.cat([layer.bias for layer in layers])
        out, weights = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, None, bias, None, None, False, self.dropout,
            self.out_proj.weight, self.out_proj.bias, self.training, use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight, v_proj_weight=self.v_proj.weight,
            **options,
        )  # fmt: skip
        return out.transpose(0, 1) if turned else out, weights

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the original's parameters too."""
        parts = ("q_proj", "k_proj", "v_proj")
        for kind in ("weight", "bias"):
            together = state_dict.pop(f"{prefix}in_proj_{kind}", None)
            for place, part in enumerate(parts):
                own = state_dict.pop(f"{prefix}{part}_{kind}", None) if together is None else together.chunk(3)[place]
                if own is not None:
                    state_dict[f"{prefix}{part}.{kind}"] = own
        super()._load_from_state_dict(state_dict, prefix, *args)


def _parts(together: nn.Parameter) -> tuple[nn.Parameter, ...]:
    """Return the parameters of query, key and value that the original holds as one."""
    return tuple(nn.Parameter(part.detach().clone(), together.requires_grad) for part in together.chunk(3))


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """Return a linear layer of these very parameters."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = weight, bias
    return made


def is_plain_call(
    query: Tensor, key_padding_mask: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> bool:
    """Return whether attention is asked for with a batch and without a mask."""
    return query.dim() == 3 and not query.is_nested and key_padding_mask is None and attn_mask is None and not is_causal


def spelled_out(net: nn.Module) -> dict[str, ExplicitAttention]:
    """Return what stands in a network in the place of each `nn.MultiheadAttention`, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, ExplicitAttention)}


def can_be_explicit(net: nn.Module) -> dict[str, nn.MultiheadAttention]:
    """Return the attention of a network that can be spelled out, by name.

    That is torch's own, without learned keys and values and added zeros, without hooks, and no matrix of it is one of
    another module's too.
    """
    owners = Counter(id(p) for module in net.modules() for p in module.parameters(recurse=False))
    return {
        name: module
        for name, module in net.named_modules()
        if type(module) is nn.MultiheadAttention
        and "forward" not in vars(module)
        and module.bias_k is None
        and not module.add_zero_attn
        and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }


def spell_out(net: nn.Module, names: set[str]) -> nn.Module:
    """Return a network, changed in place, with explicit attention of these names; itself, unless it is one of them."""
    made: dict[int, nn.Module] = {
        id(module): ExplicitAttention(module) for name, module in can_be_explicit(net).items() if name in names
    }
    for parent in list(net.modules()):
        for key, child in parent._modules.items():
            if id(child) in made:
                parent._modules[key] = made[id(child)]
        if made and isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # which are for the fused way alone
    return made.get(id(net), net)


@contextmanager
def plain_attention(net: nn.Module, batch: int, names: set[str]) -> Iterator[None]:
    """Note the attention that is called within the context, each time so that it can be spelled out.

    Args:
        net: the network.
        batch: examples in a batch, which have to be those of attention that has the batch as its second axis.
        names: gets the names, which are those of `can_be_explicit`.
    """
    calls: dict[str, bool] = {}

    def watch(name: str, module: nn.MultiheadAttention) -> Any:
        def called(query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                   need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                   is_causal: bool = False) -> bool:  # fmt: skip
            plain = is_plain_call(query, key_padding_mask, attn_mask, is_causal)
            return plain and (module.batch_first or query.shape[1] == batch)

        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] = calls.get(name, True) and called(*args, **kwargs)

        return hook

    found = can_be_explicit(net)
    handles = [module.register_forward_pre_hook(watch(n, module), with_kwargs=True) for n, module in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    names.update(name for name, plain in calls.items() if plain)
