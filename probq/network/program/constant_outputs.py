"""Layers of 0 bits have the same output for all inputs; where nothing leads around them, so has the network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq.network.program.foldable import tensors_of
from probq.network.program.network import Network
from probq.network.program.substitution import hooked
from probq.network.program.width_prior import listed
from probq.network.tracing.arguments import own_copy, shapes_of_batch
from probq.utils.random_stream import Stream
from probq.utils.structures.tensors import arguments, call, map_tensors, some_rows, with_tensors

ROWS = 2  # of the example, on which the network runs


def sites_that_cut(q: Network) -> list[str]:
    """Return the quantizers whose rung of 0 bits alone makes the network's outputs constant.

    Quantizers with a gate for each channel or weight are left out: few of them close all.
    """
    sites = [n for n, z in q.named_sites() if z.ladder.bits[0] == 0 and len(z.ladder) > 1 and not z.gates]
    cut = constant_outputs(q, [_members(q, [name]) for name in sites])
    return [name for name, constant in zip(sites, cut, strict=True) if constant]


def constant_note(q: Network) -> tuple[str, ...]:
    """Return a sentence on the quantizers whose rung of 0 bits alone makes the network's outputs constant, if any."""
    names = sites_that_cut(q)
    told = f"{listed(names)} may take 0 bits, and nothing leads around: outputs would then be the same for all inputs"
    held = "a fit at a temperature below 1 leaves that out, unless the plan has a width_prior"
    return (f"{told}; {held}; start such ladders at 1 bit",) if names else ()


def warn_constant(q: Network, widths: Mapping[str, Any]) -> None:
    """Warn at the line of the caller's caller where decided widths leave nothing of the inputs in an output.

    Args:
        q: the network.
        widths: bits of every quantizer, such as `Assignment.widths`.
    """
    pruned = [name for name, _ in q.named_sites() if not np.any(widths[name])]
    together, *each = constant_outputs(q, [_members(q, pruned), *(_members(q, [name]) for name in pruned)])
    if together:
        alone = [name for name, constant in zip(pruned, each, strict=True) if constant]
        warnings.warn(
            f"at 0 bits of {listed(alone or pruned)} outputs are the same for all inputs, since nothing leads around; "
            "raise the budget, or start such ladders at 1 bit",
            UserWarning,
            stacklevel=3,
        )


def _members(q: Network, sites: Collection[str]) -> set[str]:
    return {*sites, *(name for name, site in q.sites.items() if site in sites)}


def constant_outputs(q: Network, choices: Sequence[Collection[str]]) -> list[bool]:
    """Return for each set of quantizers whether an output depends on the inputs no longer where these take 0 bits.

    An output depends on the inputs where automatic differentiation leads from it to one, or to what an embedding makes
    of one; on its way it meets no layer whose weight or input has 0 bits. A network that does not run on its own
    example depends on what nobody knows: nothing is said of it.

    Args:
        q: the network.
        choices: sets of names, of tied quantizers all of them.
    """
    if not any(choices):
        return [False] * len(choices)
    net, modules = copy.deepcopy(q.net).requires_grad_(False).eval(), dict(q.net.named_modules())
    embeddings = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    found = []
    try:
        with Stream(0).training():
            free = _depend(net, _example(q), embeddings, ())
            for names in choices:
                layers = [m.name for m in q.layers if m.name in modules and not {m.weight, m.input}.isdisjoint(names)]
                left = _depend(net, _example(q), embeddings, layers) if layers else free
                found.append(any(before and not after for before, after in zip(free, left, strict=True)))
    except Exception:  # whatever the user's code raises on what is not its data
        return [False] * len(choices)
    return found


def _example(q: Network) -> tuple[Any, ...]:
    """Return arguments for the network: rows of its example, or numbers of the signature where a file kept none."""
    if q.example:
        few = some_rows(own_copy(q.example), 0, ROWS)
        return tuple(map_tensors(lambda a: a.to(q.device), few))
    whole = shapes_of_batch(q.signature, q.form, ROWS)
    zeros = (torch.zeros(shape, dtype=dtype, device=q.device) for shape, dtype in whole)
    return tuple(with_tensors(q.form, zeros))


def _depend(net: nn.Module, args: Any, embeddings: Sequence[str], constant: Sequence[str]) -> list[bool]:
    """Return whether each output depends on the inputs, with the outputs of some layers held."""
    results = {name: _opened for name in embeddings} | dict.fromkeys(constant, Tensor.detach)
    given = map_tensors(lambda a: _opened(a) if a.is_floating_point() else a, arguments(args))
    with hooked(net, {}, {}, results):
        return [output.requires_grad for output in tensors_of(call(net, given))]


def _opened(x: Tensor) -> Tensor:
    return x.detach().requires_grad_().clone()  # what comes next may work in place
