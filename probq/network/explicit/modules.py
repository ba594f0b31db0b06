"""Modules of torch that multiply tensors inside are replaced here by those of `probq.nn`, which are spelled out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from probq.nn.attention import MultiheadAttention, is_plain_call
from probq.nn.recurrent import GRU, LSTM

FORMS: Mapping[type[nn.Module], Any] = MappingProxyType(
    {nn.MultiheadAttention: MultiheadAttention, nn.LSTM: LSTM, nn.GRU: GRU}
)

# What to do about a batch that is not the first axis of what a network is called with.
TURN = (
    "Where the batch is the second axis of the network's input, as [time, batch, features], wrap it in a module with "
    "the forward net(x.transpose(0, 1)), and quantize that with inputs [batch, time, features]"
)


def spelled_out(net: nn.Module) -> dict[str, nn.Module]:
    """Return what stands in a network in the place of each module that is spelled out, by name."""
    forms: tuple[type[nn.Module], ...] = tuple(FORMS.values())
    return {name: module for name, module in net.named_modules() if isinstance(module, forms)}


def can_be_explicit(net: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network that can be spelled out, by name.

    They are torch's own, without hooks, and no matrix of theirs is one of another module's too; attention has neither
    learned keys and values nor added zeros.
    """
    owners = Counter(id(p) for module in net.modules() for p in module.parameters(recurse=False))
    return {
        name: module
        for name, module in net.named_modules()
        if type(module) in FORMS
        and "forward" not in vars(module)
        and getattr(module, "bias_k", None) is None
        and not getattr(module, "add_zero_attn", False)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }


def spell_out(net: nn.Module, names: set[str]) -> nn.Module:
    """Return a network, changed in place, with explicit modules of these names; itself, unless it is one of them."""
    chosen = [module for name, module in can_be_explicit(net).items() if name in names]
    made: dict[int, nn.Module] = {id(module): FORMS[type(module)].of(module) for module in chosen}
    for parent in list(net.modules()):
        for key, child in parent._modules.items():
            if id(child) in made:
                parent._modules[key] = made[id(child)]
        if made and isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # which are for the fused way alone
    return made.get(id(net), net)


@contextmanager
def plain_calls(net: nn.Module, batch: int, names: set[str], others: set[str]) -> Iterator[None]:
    """Note the modules that are called within the context, each time so that they can be spelled out.

    Args:
        net: the network.
        batch: examples in a batch, which have to be those of modules that have the batch as their second axis.
        names: gets the names, which are those of `can_be_explicit`.
        others: gets the names of those that take the batch as their second axis, and get it as their first.
    """
    calls: dict[str, bool] = {}

    def watch(name: str, called: Any) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            plain, first = called(*args, **kwargs), module.batch_first
            calls[name] = calls.get(name, True) and plain and (first or x.shape[1] == batch)
            if plain and not first and x.shape[1] != batch == x.shape[0]:
                others.add(name)

        return hook

    found = can_be_explicit(net)
    handles = [
        module.register_forward_pre_hook(
            watch(name, _is_plain_attention if isinstance(module, nn.MultiheadAttention) else _is_plain_recurrence),
            with_kwargs=True,
        )
        for name, module in found.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    names.update(name for name, plain in calls.items() if plain)


def _is_plain_attention(
    query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
    attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> bool:  # fmt: skip
    return is_plain_call(query, attn_mask, is_causal)


def _is_plain_recurrence(input: Any, hx: Any = None) -> bool:
    """Return whether a recurrent module is called with a batch of sequences that are not packed."""
    return isinstance(input, Tensor) and input.dim() == 3
