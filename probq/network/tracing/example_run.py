"""A network is run on its example here, in evaluation mode and with gradients, and left as it was."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.tracing.arguments import own_copy
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import call, described, map_tensors, tensors_in


def run_example(net: nn.Module, args: tuple[Any, ...], *contexts: Any) -> None:
    """Run a network once, all of its parameters trainable.

    Args:
        net: the network.
        args: its arguments.
        contexts: context managers within which it runs, the outermost first.

    Raises:
        ProbqError: if it cannot run on them.
    """
    training = [m for m in net.modules() if m.training]
    trainable = [(p, p.requires_grad) for p in net.parameters() if p.is_floating_point()]
    net.eval()
    for parameter, _ in trainable:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            call(net, args)
    except ProbqError:
        raise
    except Exception as error:
        hint = (
            "; several inputs are one tuple, or a dictionary by keyword, also in batches: ((a, b), target)"
            if isinstance(error, TypeError)
            else ""
        )
        raise ProbqError(f"the network cannot run on the example (shapes {described(args)}): {error}{hint}") from error
    finally:
        for module in training:
            module.training = True
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)


def read_alike(net: nn.Module, args: tuple[Any, ...], names: Collection[str]) -> frozenset[str]:
    """Return those modules that read the same when the network is called with other arguments.

    Which tensors depend on its input is not seen through functions that are no torch's own; this tells for certain.

    Args:
        net: the network.
        args: its arguments; the others are the same examples in reverse, real numbers negated.
        names: of the modules.
    """
    others = map_tensors(lambda a: -a.flip(0) if a.is_floating_point() else a.flip(0), args) if names else ()
    try:
        first, second = (_read(net, own_copy(given), names) for given in (args, others))
    except ProbqError:  # the network takes no such numbers
        return frozenset()
    return frozenset(
        name
        for name in names
        if name and len(first[name]) == len(second[name]) and all(map(torch.equal, first[name], second[name]))
    )


def _read(net: nn.Module, args: tuple[Any, ...], names: Collection[str]) -> dict[str, list[Tensor]]:
    """Return the tensors that modules are called with."""
    read: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Any:
        return lambda _, args, kwargs: read[name].extend(a.detach().clone() for a in tensors_in((args, kwargs)))

    handles = [
        net.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in names if name
    ]
    try:
        if handles:
            run_example(net, args)
    finally:
        for handle in handles:
            handle.remove()
    return read
