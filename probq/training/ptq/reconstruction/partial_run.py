"""A decided network runs from one unit of layers to where its outputs enter the next layer, or to the end."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import code_levels
from probq.network.program.decided_codes import rung_onehots
from probq.network.program.foldable import tensors_of
from probq.network.program.substitution import running, substitute
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.arguments import hook_input
from probq.network.tracing.layer import Layer
from probq.utils.structures.tensors import arguments, rows_of, some_rows

ROWS = 32  # examples of a step


class _ReachedError(BaseException):
    """This is raised where what a unit computes reaches a layer beyond it; no `except` of the network's stops it."""

    def __init__(self, name: str, call: int, x: Tensor) -> None:
        self.name, self.call, self.x = name, call, x


class PartialRun:
    """A partial run computes what a unit of layers makes of a batch, and how far that is from the float network.

    Args:
        q: a decided network.
        reference: the network whose float outputs are meant.
        inputs: batches of inputs.

    Attributes:
        levels: of every weight, in units of its scale.
        rungs: of every weight.
        batches: the inputs, a few examples each.
    """

    def __init__(self, q: Quantized, reference: Quantized, inputs: Sequence[Any]) -> None:
        self.q, self.reference = (copy.deepcopy(own).eval().requires_grad_(False) for own in (q, reference))
        assignment = q.mode()
        self.onehots = rung_onehots(self.q, assignment.widths)
        self.rungs = {name: self.q.rung(name, self.onehots[name]) for name in q.weights}
        self.levels: dict[str, Tensor] = {}
        for name, rung in self.rungs.items():
            codes = torch.as_tensor(assignment.codes[name], device=q.device).long()
            self.levels[name] = code_levels(rung.levels, codes).to(self.q.net.get_parameter(name).dtype)
        self.batches = [part for x in inputs for part in _parts(x)]
        modules = {name for name, _ in self.q.net.named_modules()}
        self._layers = [layer.name for layer in q.layers if layer.name in modules]
        self._kept: list[dict[str, list[Tensor]]] = []
        self._targets: list[list[Tensor]] = []
        self._stop: tuple[str, int] | None = None

    def enter(self, unit: Sequence[Layer]) -> bool:
        """Keep what reaches a unit, and what the float network has where it ends; False: nothing depends on it.

        Args:
            unit: layers in the order of their calls.
        """
        self._kept, self._stop = [], None
        first, own = unit[0].name, {layer.name for layer in unit}
        before = self._layers[: self._layers.index(first)]
        with torch.no_grad():
            self._kept = [self._upstream(x, before, first) for x in self.batches]
        soft = {layer.weight: self.levels[layer.weight].clone().requires_grad_() for layer in unit}
        beyond = [name for name in self._layers if name not in own]
        with torch.enable_grad(), self._replayed(0), _stopping(self.q.net, beyond, None):
            try:
                reached = tensors_of(self._decided(self.batches[0], soft))
            except _ReachedError as stop:
                self._stop, reached = (stop.name, stop.call), [stop.x]
        with torch.no_grad():
            self._targets = [self._stopped(self.reference, partial(self._float, x)) for x in self.batches]
        return any(tensor.requires_grad for tensor in reached)

    def error(self, number: int, levels: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of squared differences from the float network on one batch.

        Args:
            number: of the batch.
            levels: of the unit's weights, in units of their scales.
        """
        with self._replayed(number):
            found = self._stopped(self.q, partial(self._decided, self.batches[number], levels))
        pairs = zip(found, self._targets[number], strict=True)
        return torch.stack([(a - b).square().sum() for a, b in pairs]).sum()

    @torch.no_grad()
    def objective(self, levels: Mapping[str, Tensor]) -> float:
        """Return the sum of squared differences on all batches."""
        return sum(float(self.error(number, levels)) for number in range(len(self.batches)))

    def _float(self, x: Any) -> Any:
        with running(x):
            return substitute(self.reference.net, {}, {}, {}, *arguments(x))

    def _decided(self, x: Any, levels: Mapping[str, Tensor]) -> Any:
        """Return the outputs with other levels of some weights."""
        with running(x):
            return self.q.run(self.onehots, {**self.levels, **levels}, x)

    def _stopped(self, q: Quantized, run: Callable[[], Any]) -> list[Tensor]:
        """Return what enters the layer where the unit ends, or all outputs."""
        with _stopping(q.net, [self._stop[0]] if self._stop else [], self._stop):
            try:
                return tensors_of(run())
            except _ReachedError as stop:
                return [stop.x]

    def _upstream(self, x: Any, before: Sequence[str], first: str) -> dict[str, list[Tensor]]:
        """Return the outputs of all calls of the layers in front of a unit."""
        kept: dict[str, list[Tensor]] = {name: [] for name in before}
        handles = [
            self.q.net.get_submodule(name).register_forward_hook(lambda m, a, out, to=to: to.append(out.clone()))
            for name, to in kept.items()
        ]
        try:
            with _stopping(self.q.net, [first], (first, 0)):
                self._decided(x, {})
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return kept

    @contextmanager
    def _replayed(self, number: int) -> Iterator[None]:
        """Let the layers in front of the unit give what was kept of a batch, within the context."""
        modules = []
        for name, outputs in self._kept[number].items():
            module: Any = self.q.net.get_submodule(name)
            module.forward = partial(_next, iter(outputs), module.forward)
            modules.append(module)
        try:
            yield
        finally:
            for module in modules:
                del module.forward  # the class's own again


def _next(outputs: Iterator[Tensor], forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    kept = next(outputs, None)
    return forward(*args, **kwargs) if kept is None else kept.clone()  # what comes next may work in place


@contextmanager
def _stopping(net: Any, names: Sequence[str], place: tuple[str, int] | None) -> Iterator[None]:
    """Raise at the call of a layer that is named, or without one, at the first whose input has a gradient."""
    calls: Counter[str] = Counter()

    def look(name: str, module: Any, args: Any, kwargs: Any) -> None:
        x = hook_input(args, kwargs)
        if x.requires_grad if place is None else (name, calls[name]) == place:
            raise _ReachedError(name, calls[name], x)
        calls[name] += 1

    handles = [
        net.get_submodule(name).register_forward_pre_hook(partial(look, name), with_kwargs=True) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(x: Any) -> list[Any]:
    """Return a batch as batches of few examples."""
    several = arguments(x)
    cut = [some_rows(several, k, k + ROWS) for k in range(0, rows_of(several), ROWS)]
    return [part[0] for part in cut] if isinstance(x, Tensor) else list[Any](cut)
