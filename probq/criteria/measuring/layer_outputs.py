"""This module catches what every layer of the float network gives on a batch, for criteria that look at features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.network.tracing.module_kinds import CONVOLUTIONS
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, rows_of


@torch.no_grad()
def layer_outputs(q: Program, x: Any) -> dict[str, list[Tensor]]:
    """Return the outputs of every layer of the float network, one for each call.

    Each is float64 `[examples, places, channels]`. Places are all positions of an image or a sequence. What follows a
    layer, such as a normalisation or an activation, is not part of its output.

    Args:
        q: a quantized network.
        x: a batch of inputs, or a tuple of the network's arguments.

    Raises:
        ProbqError: if a layer is not called, or the first axis of an output is not that of the examples, alone or with
            others behind it.
    """
    caught: dict[str, list[Tensor]] = {layer.name: [] for layer in q.layers}
    results = {name: _catcher(outputs) for name, outputs in caught.items()}
    with q.evaluating(), running(x):
        substitute(q.net, {}, {}, {}, *arguments(x), results=results)
    rows = rows_of(x)
    for name, outputs in caught.items():
        if not outputs:
            raise ProbqError(f"{name} was not called on these examples; give those on which the whole network runs")
    return {name: [_by_example(q, name, out, rows) for out in outputs] for name, outputs in caught.items()}


def _catcher(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    return partial(_catch, kept)


def _catch(kept: list[Tensor], output: Tensor) -> Tensor:
    kept.append(output.detach().clone())  # what comes next may work in place
    return output


def _by_example(q: Program, name: str, output: Tensor, rows: int) -> Tensor:
    if output.shape[0] % rows:
        raise ProbqError(
            f"the output of {name or 'the network'} has the shape {tuple(output.shape)} for {rows} examples; features "
            "are compared where the examples are the first axis of every layer's output"
        )
    channels = output.movedim(1, -1) if isinstance(q.net.get_submodule(name), CONVOLUTIONS) else output
    return channels.reshape(rows, -1, channels.shape[-1]).double()
