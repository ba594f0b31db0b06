"""Networks run with a few quantizers on narrower rungs: what lies upstream of the first of them is computed once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from probq.criteria.measuring.quantizers_of import quantizers_of
from probq.decisions.widths import fix_widths
from probq.network.program.decided_codes import decided_output
from probq.network.program.substitution import running, substitute
from probq.network.quantized.fingerprint import fingerprint
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.batch_norm import FloatStatistics, has_norms
from probq.utils.structures.tensors import arguments

MOST_CACHED = 2**31  # bytes of outputs that are kept; beyond, everything is computed anew
Batch = tuple[Any, Tensor | None]


class PerturbedNetwork:
    """A copy of a network whose quantizers are all on their widest rung, but for those that a call names.

    Every choice is run on the same examples; where the network has batch normalisation, its statistics are moved at
    each choice by what this changes on those examples.

    Args:
        q: a network with scales.
        batches: examples, kept in memory.
        of: "weights", "inputs" or "both", the quantizers that choices perturb.

    Attributes:
        names: of the quantizers that have a choice, tied ones once.
        widths: bits of the rungs of each.
        perturbed: the names that choices take, those of `of`.
        operations: what the network computes, line by line.
        forwards: number of layer calls that were computed and not taken from what was kept.
    """

    def __init__(self, q: Quantized, batches: Iterable[Batch], of: str = "both") -> None:
        self._made_of = q, list(batches), of
        self.q, self.batches = copy.deepcopy(q).eval(), self._made_of[1]
        self.names, self.perturbed = quantizers_of(q, "both"), quantizers_of(q, of)
        self.widths: tuple[Any, ...] = tuple(self.q.quantizer(name).ladder.bits for name in self.names)
        self.operations = fingerprint(self.q.net, self.q.signature, self.q.form)
        self.norms = FloatStatistics(self.q, self.batches) if has_norms(self.q) else None
        self.forwards = 0
        self._kept: dict[tuple[Any, str], list[Tensor]] = {}
        self._bytes, self._order = 0, dict[str, int]()
        self._key: Any = None
        self._first, self._calls = 0, Counter[str]()
        self._recording = True
        for layer in self.q.layers:
            module = self.q.net.get_submodule(layer.name)
            module.forward = partial(self._forward, layer.name, module.forward)
        list(self.outputs({}))
        self._recording = False

    def __reduce__(self) -> Any:
        """Return what the network is made of, for another process to make it again."""
        return type(self), self._made_of

    def outputs(self, widths: Mapping[str, int]) -> Iterator[tuple[Any, Batch]]:
        """Yield the outputs at given widths, every code at its mode, with the batch of each.

        Args:
            widths: bits of the quantizers that are not on their widest rung.
        """
        everything = {name: max(q.ladder.bits) for name, q in self.q.named_quantizers()} | dict(widths)
        everything |= {name: everything[site] for name, site in self.q.sites.items()}
        shaped = {name: np.full(q.gates, everything[name]) for name, q in self.q.named_quantizers()}
        fix_widths(self.q, shaped)
        self._first = self._first_touched(widths)
        with torch.no_grad():
            if self.norms:
                self.q.folded = False
                self.q.eval()
                self.norms.estimate(self.q, self._marked("norms"))
            with self.q.evaluating():
                for batch in self._marked("folded"):
                    with running(batch[0]):
                        yield decided_output(self.q, arguments(batch[0])), batch

    def float_outputs(self) -> Iterator[Any]:
        """Yield the outputs of the float network."""
        self._first = -1
        with torch.no_grad(), self.q.evaluating():
            for x, _ in self._marked("float"):
                with running(x):
                    yield substitute(self.q.net, {}, {}, {}, *arguments(x))

    @cached_property
    def float_laws(self) -> list[Distribution]:
        """The laws of the targets that the float network's outputs give, batch by batch."""
        return [self.q.law(output) for output in self.float_outputs()]

    def _first_touched(self, widths: Mapping[str, int]) -> int:
        """Return the place of the first layer that computes otherwise than on the widest rungs."""
        named = set(widths) | {name for name, site in self.q.sites.items() if site in widths}
        touched = [layer.name for layer in self.q.layers if {layer.weight, layer.input} & named]
        return min((self._order.get(name, 0) for name in touched), default=len(self._order))

    def _marked(self, phase: str) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches):
            self._key, self._calls = (phase, number), Counter()
            yield batch

    def _forward(self, name: str, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        call, kept = self._calls[name], self._kept.get((self._key, name))
        self._calls[name] += 1
        if kept is not None and not self._recording and self._order[name] < self._first:
            return kept[call].clone()  # what comes next may work in place
        output = forward(*args, **kwargs)
        self.forwards += 1
        if self._recording:
            self._order.setdefault(name, len(self._order))
            self._bytes += output.numel() * output.element_size()
            if self._bytes <= MOST_CACHED:
                self._kept.setdefault((self._key, name), []).append(output.detach().clone())
            else:
                self._kept.clear()
        return output
