"""Attention with several heads is spelled out here as linear layers, two products and a softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.utils.errors import ProbqError


class MultiheadAttention(nn.Module):
    """This module computes what `torch.nn.MultiheadAttention` does, and each of its matrices is a linear layer.

    `load_state_dict` takes the parameters of that as well as its own. Calls without a batch are left to torch's
    function, which computes the same in one piece.

    Args:
        embed_dim: numbers of a query and of an output.
        num_heads: heads, each of which has `embed_dim / num_heads` numbers.
        dropout: the share of attention's weights that training drops.
        bias: whether the linear layers add one.
        kdim, vdim: numbers of a key and of a value; None: `embed_dim`.
        batch_first: whether inputs are `[batch, places, numbers]`, not `[places, batch, numbers]`.

    Attributes:
        q_proj, k_proj, v_proj: linear layers of the query, the key and the value.
        out_proj: the linear layer of the output.

    Raises:
        ProbqError: if the heads do not divide the numbers.

    Source: A. Vaswani et al., 2017, "Attention Is All You Need".

    Example:
        >>> import torch, probq
        >>> attention, x = probq.nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
        >>> [tuple(part.shape) for part in attention(x, x, x)]
        [(3, 5, 8), (3, 5, 5)]
    """

    # `nn.TransformerEncoderLayer` has a fused way of its own, which it does not take where these say so.
    _qkv_same_embed_dim = False
    in_proj_weight = in_proj_bias = bias_k = bias_v = None

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, kdim: int | None = None,
        vdim: int | None = None, batch_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ProbqError(f"{num_heads} heads do not divide {embed_dim} numbers; let embed_dim be a multiple")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.dropout, self.batch_first = dropout, batch_first
        sizes = (embed_dim, self.kdim, self.vdim, embed_dim)
        made = [nn.Linear(size, embed_dim, bias) for size in sizes]
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = made

    @classmethod
    def of(cls, original: nn.MultiheadAttention) -> MultiheadAttention:
        """Return what computes the same as a module of torch, with the values of its parameters."""
        with torch.device("meta"):  # which draws no random numbers
            made = cls(
                original.embed_dim, original.num_heads, original.dropout, original.in_proj_bias is not None,
                original.kdim, original.vdim, original.batch_first,
            )  # fmt: skip
        apart = (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
        weights = apart if original.in_proj_weight is None else _parts(original.in_proj_weight)
        biases = (None, None, None) if original.in_proj_bias is None else _parts(original.in_proj_bias)
        for layer, weight, bias in zip((made.q_proj, made.k_proj, made.v_proj), weights, biases, strict=True):
            layer.weight, layer.bias = weight, bias
        made.out_proj.weight, made.out_proj.bias = original.out_proj.weight, original.out_proj.bias
        return made.train(original.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return the output and, if they are wanted, the weights of the values, as the original does."""
        if not is_plain_call(query, attn_mask, is_causal):
            options = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
            return self._in_one_piece(query, key, value, **options, **masks)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        scores = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
        if attn_mask is not None:
            scores = _masked(scores, attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, q.shape[:2]))
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask[:, None, None, :])
        weights = torch.softmax(scores, -1)
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


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Return scores without those that a mask takes out where it is true, or plus a mask of numbers."""
    return scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def is_plain_call(query: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> bool:
    """Return whether attention is asked for with a batch, and with the mask that it is said to have."""
    return query.dim() == 3 and not query.is_nested and (attn_mask is not None or not is_causal)
