"""A quantizer of vectors learns the tables of its codebooks, which k-means finds in the trained weight."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks import Grid, Ladder, VectorCodebook
from probq.codebooks.rounding.kmeans import weighted_kmeans
from probq.codebooks.rounding.scales import LARGEST_OF_VECTORS, LEAST_SIZE, check_size, hardware_scale
from probq.codebooks.rounding.vectors import Vectors
from probq.estimators.gate_gradients import ENTROPY_SAMPLE, Part, random_part
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.distributions.vector_codes import UniformVectorCodes, VectorCodes
from probq.network.quantizers.base import Rung
from probq.network.quantizers.plan import Plan
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.layer import WeightTable
from probq.utils.errors import ProbqError

LEAST_IMPORTANCE = 1e-3  # of a number of a row, of their mean: one that meets zeros has a place to be all the same


class VectorQuantizer(WeightQuantizer):
    """A vector quantizer is one of a weight whose ladder has vectors; its other rungs are as in `WeightQuantizer`.

    The tables are the parameters `vectors`, one for each rung that has them, `[T, K, d]` in units of the largest entry;
    rounded to integers, they are levels.

    Args:
        weight: the trained weight, as in `WeightQuantizer`.
        plan: the layer's plan.
        channel_axis: axis of the weight that runs over output channels.
        importance: mean square of the input that each number of a row meets, `[row]`; None: all alike.

    Raises:
        ProbqError: if vectors do not fill the rows, are too many for the weight, or the plan wants of them what single
            levels can do.
    """

    def __init__(self, weight: Tensor, plan: Plan, channel_axis: int, importance: Tensor | None = None) -> None:
        row = math.prod(weight.shape[1:])
        plan = replace(plan, weight=plan.weight.for_row(row))
        _check(plan, weight)
        super().__init__(torch.empty(weight.shape, device="meta"), plan, channel_axis)
        self.vectors = nn.ParameterDict()
        for k, book in self._books():
            self.vectors[str(k)] = nn.Parameter(torch.zeros(book.tables, book.count, book.size))
        self.importance: Tensor
        given = torch.ones(row) if importance is None else importance.float()
        self.register_buffer("importance", given.clamp_min(LEAST_IMPORTANCE * given.mean().clamp_min(LEAST_SIZE)))
        if not weight.is_meta:
            self.calibrate(weight)

    def _books(self) -> list[tuple[int, VectorCodebook]]:
        return [(k, book) for k, book in enumerate(self.ladder.rungs) if isinstance(book, VectorCodebook)]

    def levels(self, rung: int) -> Grid | Vectors | Tensor:
        """Return the levels of one rung: vectors of integers, or what `WeightQuantizer` has."""
        book = self.ladder.rungs[rung]
        if not isinstance(book, VectorCodebook):
            return super().levels(rung)
        entries = self.vectors[str(rung)] * book.largest
        whole = torch.round(entries.detach()).clamp(-book.largest, book.largest)
        return Vectors(whole + (entries - entries.detach()), self.importance.reshape(-1, book.size), self.shape)

    def _calibrate_rung(self, rung: int, weight: Tensor) -> None:
        """Find the vectors of a rung, and the scales in which the largest entry is the largest integer."""
        book = self.ladder.rungs[rung]
        if not isinstance(book, VectorCodebook):
            super()._calibrate_rung(rung, weight)
            return
        check_size(weight, LARGEST_OF_VECTORS)
        axes = [axis for axis, n in enumerate(self.log2_scale.shape[1:]) if n == 1] or None
        squares = weight.double().square()  # which float32 may not hold where weights are small
        size = squares.mean(axes or list(range(weight.dim())), keepdim=bool(axes)).sqrt().to(weight)
        size = torch.where(size > 0, size, size.max().clamp_min(LEAST_SIZE))
        found = self._clusters(book, weight, size, None)
        reach = torch.stack([part.abs().max() for part in found]).max().clamp_min(LEAST_SIZE).to(size)
        self.log2_scale[rung] = torch.log2(size * reach / book.largest).reshape(self.log2_scale.shape[1:])
        scale = hardware_scale(self.log2_scale[rung], self.multipliers)
        begun = [part * (book.largest / reach) for part in found]
        entries = torch.stack(self._clusters(book, weight, scale, begun)) / book.largest
        self.vectors[str(rung)].copy_(entries.clamp(-1, 1))

    def _clusters(
        self, book: VectorCodebook, weight: Tensor, scale: Tensor, begun: list[Tensor] | None
    ) -> list[Tensor]:
        """Return the centres of `sum scale^2 importance (weight / scale - centre)^2` for each table, `[K, d]`."""
        places = (-1, len(self.importance) // book.size, book.size)
        points = (weight / scale).reshape(places)
        weights = (scale.double().square() * self.importance.reshape(weight[0].shape)).expand_as(weight).reshape(places)
        parts = [slice(None)] if book.tables == 1 else [slice(k, k + 1) for k in range(book.tables)]
        found = []
        for k, part in enumerate(parts):
            own, of_own = (values[:, part].reshape(-1, book.size) for values in (points, weights))
            centres = None if begun is None else begun[k]
            found.append(weighted_kmeans(own, of_own, book.count, centres=centres).centres)
        return found

    def law(self, location: Tensor, rung: Rung, nearest: int | None = None) -> Codes:
        """Return the posterior of the codes on a drawn rung."""
        if isinstance(rung.levels, Vectors):
            return VectorCodes(location, rung.scale, rung.levels, self.spread, nearest or self.nearest)
        return super().law(location, rung, nearest)

    def _laws(self, location: Tensor, scales: Tensor, part: Part) -> list[Codes]:
        return [self.law(location, Rung(self.levels(k), s, k)) for k, s in enumerate(scales)]

    def _prior(self, rung: Rung, part: Part, shape: torch.Size, device: torch.device) -> UniformCodes:
        if isinstance(rung.levels, Vectors):
            return UniformVectorCodes(shape, rung.levels, device)
        return super()._prior(rung, part, shape, device)

    @torch.no_grad()
    def _divergences(self, location: Tensor) -> Tensor:
        """Return `KL(codes || prior)` on every rung in nats, `[B]`, from a random part of the rows, scaled up."""
        part = random_part(location, ENTROPY_SAMPLE)
        here, scales = part(location), self._parts(part)
        each = []
        for k, law in enumerate(self._laws(here, scales, part)):
            prior: Any = self._prior(Rung(law.levels, scales[k], k), part, here.shape, here.device)
            each.append(prior.log_count() - law.entropies().sum())
        return torch.stack(each) * (location.numel() / here.numel())


def weight_quantizer(
    weight: Tensor, plan: Plan, channel_axis: int, trained: Tensor | None = None, importance: Tensor | None = None
) -> WeightQuantizer:
    """Return the quantizer of a weight: one of vectors where its ladder has some.

    Args:
        weight: the trained weight.
        plan: the layer's plan.
        channel_axis: axis of the weight that runs over output channels.
        trained: as in `WeightQuantizer`.
        importance: as in `VectorQuantizer`.
    """
    if plan.weight.has_vectors:
        return VectorQuantizer(weight, plan, channel_axis, importance)
    return WeightQuantizer(weight, plan, channel_axis, trained)


def tables_of(ladder: Ladder) -> tuple[WeightTable, ...]:
    """Return the tables of a weight's ladder that costs count."""
    books = [book for book in ladder.rungs if isinstance(book, VectorCodebook)]
    return tuple(WeightTable(book.bits, book.entry_bits, book.table_bits) for book in books)


def importance_of(shape: tuple[int, ...], x: Tensor | None, transposed: bool = False) -> Tensor | None:
    """Return the mean square of the input that each number of a weight's row meets, `[row]`; None where unknown.

    Args:
        shape: of the weight of a linear layer or a convolution.
        x: inputs of the layer, batch first, `[..., features]` or `[batch, channels, *sizes]`.
        transposed: whether it is a transposed convolution, whose rows each meet one channel.
    """
    if x is None or transposed or not x.is_floating_point():
        return None
    taps = math.prod(shape[2:])
    channel = x.dim() - 1 if len(shape) == 2 else x.dim() + 1 - len(shape)
    squares = x.detach().double().square().mean([axis for axis in range(x.dim()) if axis != channel])
    if squares.numel() % shape[1]:
        return None
    return squares.reshape(-1, shape[1]).mean(0).repeat_interleave(taps)


def _check(plan: Plan, weight: Tensor) -> None:
    """Raise where vectors cannot do what a plan wants, or do not pay."""
    for what, wanted in (
        ("code_prior", plan.code_prior is not None),
        ("free_codes", plan.free_codes),
        ("keep_zeros", plan.keep_zeros),
        ("estimator", plan.estimator is not None and plan.estimator.noisy),
        ("gates", plan.gates != "tensor"),
    ):
        if wanted:
            raise ProbqError(
                f"Plan({what}=...) speaks of single weights, and codes of vectors are of several; leave it out for a "
                "ladder with vectors"
            )
    for book in plan.weight.rungs:
        if isinstance(book, VectorCodebook):
            codes = weight.numel() // book.size * book.code_bits + book.table_bits
            if codes >= weight.numel() * book.entry_bits:
                raise ProbqError(
                    f"a table of {book.tables} x {book.count} vectors of {book.size} is too large for a weight of "
                    f"{weight.numel()} numbers: with its codes it takes {codes} bits, the weight at "
                    f"{book.entry_bits} bits {weight.numel() * book.entry_bits}; give fewer vectors"
                )
