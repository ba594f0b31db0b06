"""A quantizer has a ladder of codebooks, a scale for each rung, gates that choose a rung, and a law of the codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.codebooks import Grid, Ladder
from probq.codebooks.rounding.nearest import BroadcastGrid, BroadcastTable, Levels, all_levels, nearest_level
from probq.codebooks.rounding.scales import attach_scale_gradient, best_log2_scale, hardware_scale, thinned
from probq.codebooks.rounding.vectors import Vectors
from probq.estimators import Estimator, SecondOrder, StraightThrough
from probq.estimators.gate_gradients import Part, gate_gradient, inner_products, round_input
from probq.network.distributions.widths import Widths
from probq.priors import WidthPrior
from probq.utils.errors import ProbqError

OPEN = 4.0  # log-odds that gates start at: narrow rungs, drawn early, would disturb the training of wide ones
HELD = 1000.0  # log-odds of a gate that a search leaves open: no draw closes it, and no decision that has a choice
ERROR = 2.0**-44  # below the distance of two integers of 40 bits, far above what float64 errs by in averages
FINEST_LEVEL = 1 / 16


@dataclass(frozen=True)
class Rung:
    """A drawn rung holds its levels and its scale, as tensors that broadcast where gates are not shared by all.

    Attributes:
        levels: the levels of the codes.
        scale: the scale of the levels.
        index: place on the ladder, where all weights share one.
        factor: what a folded normalisation multiplies the weight by; None: nothing is folded.
    """

    levels: Levels
    scale: Tensor
    index: int | None = None
    factor: Tensor | None = None


class Quantizer(nn.Module):
    """This class holds what weights and inputs have in common: ladder, gates and scales.

    Args:
        ladder: the codebooks to choose from.
        gates: shape of what has a width of its own, broadcastable to the tensor; `()` for one shared width.
        scales: shape of what has a scale of its own, broadcastable to the tensor.
        multipliers: see `hardware_scale`.
        prior: the prior of the width; None: uniform.
        estimator: the estimator of the gradients; None: see `Plan`.
    """

    def __init__(
        self,
        ladder: Ladder,
        gates: tuple[int, ...] = (),
        scales: tuple[int, ...] = (),
        multipliers: int = 1,
        prior: WidthPrior | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__()
        self.ladder, self.gates, self.multipliers = ladder, gates, multipliers
        self.width_prior, self.chosen_estimator = prior, estimator
        if prior is not None:
            prior.logits(ladder)  # raises where they do not fit
        if gates and not all(rung.whole for rung in ladder.rungs):
            raise ProbqError(
                "gates per channel or weight need codebooks of whole numbers (uniform, binary, ternary, pruned or "
                'powers of two); use Plan(gates="tensor") for given levels and learned ones'
            )
        self.logits = nn.Parameter(torch.full((*gates, len(ladder) - 1), OPEN), requires_grad=len(ladder) > 1)
        self.log2_scale = nn.Parameter(torch.zeros(len(ladder), *scales))
        self.tables = nn.ParameterDict({str(k): r.levels() for k, r in enumerate(ladder.rungs) if r.learned})
        self.fixed: Tensor | None
        self.register_buffer("fixed", None)
        self.tuned: Tensor | None  # rungs that the last fit tuned the network at
        self.register_buffer("tuned", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Convert or move all tensors; those of five axes have no format of memory, as none of them is an image."""

        def converted(tensor: Tensor) -> Tensor:
            return fn(tensor.reshape(-1)).view(tensor.shape) if tensor.dim() == 5 else fn(tensor)

        super()._apply(converted, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take decided rungs as they stand in the state: of other shape than here, or none, as before any decision."""
        if f"{prefix}log2_scale" in state_dict:
            for name in ("fixed", "tuned"):
                found = state_dict.get(f"{prefix}{name}")
                setattr(self, name, None if found is None else torch.zeros_like(found, device=self.logits.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def free(self) -> bool:
        """Return whether the width is unknown: more than one rung, and not fixed by a decision."""
        return len(self.ladder) > 1 and self.fixed is None

    @property
    def estimator(self) -> Estimator:
        """Return the estimator of the gates' gradient.

        The codes' gradient has it too, unless `code_estimator` says otherwise.
        """
        return self.chosen_estimator or SecondOrder()

    def code_estimator(self, temperature: float) -> Estimator:
        """Return the estimator of the codes' gradient at a temperature.

        A warm posterior explores with straight-through draws until the width is decided.
        """
        explores = self.chosen_estimator is None and temperature < 1 and self.fixed is None
        return StraightThrough() if explores else self.estimator

    def widths(self) -> Widths:
        """Return the posterior over the rungs, batch shape `gates`."""
        return self.estimator.widths(self.logits)

    def prior(self) -> Widths:
        """Return the prior over the rungs, by default all equally probable."""
        if self.width_prior is not None:
            return Widths(self.width_prior.logits(self.ladder).to(self.logits).expand_as(self.logits))
        remaining = torch.arange(len(self.ladder) - 1, 0, -1, dtype=self.logits.dtype, device=self.logits.device)
        return Widths(remaining.log().expand_as(self.logits))

    def probs(self) -> Tensor:
        """Return the probability of each rung `[*gates, B]`, all on one rung where the width is fixed."""
        if self.fixed is not None:
            return F.one_hot(self.fixed, len(self.ladder)).to(self.logits.dtype)
        return self.widths().probs

    def fix(self, widths: Any) -> None:
        """Fix the width.

        Args:
            widths: in bits, an int or an array of the shape `gates`.

        Raises:
            ProbqError: if a width is not on the ladder.
        """
        bits = np.broadcast_to(np.asarray(widths), self.gates)
        if not np.isin(bits, self.ladder.bits).all():
            raise ProbqError(f"a width of {widths} bits is not on the ladder {self.ladder.bits}")
        self.fixed = torch.as_tensor(np.searchsorted(self.ladder.bits, bits)).to(self.logits.device)

    def levels(self, rung: int) -> Grid | Vectors | Tensor:
        """Return the levels of one rung: a grid, vectors, or a tensor `[K]` (learned ones are multiples of 1/16)."""
        book = self.ladder.rungs[rung]
        if isinstance(book, Grid):
            return book
        if not book.learned:
            return book.levels().to(self.logits)
        values = torch.sort(self.tables[str(rung)])[0]
        finest = torch.round(values.detach() / FINEST_LEVEL) * FINEST_LEVEL
        return finest + (values - values.detach())

    def grids(self) -> list[Grid] | None:
        """Return the rungs if all of them are equally spaced, else None."""
        grids = [rung for rung in self.ladder.rungs if isinstance(rung, Grid)]
        return grids if len(grids) == len(self.ladder) else None

    def scales(self) -> Tensor:
        """Return the scale of every rung, `[B, *scales]`."""
        return attach_scale_gradient(hardware_scale(self.log2_scale, self.multipliers), self.log2_scale)

    def rung(self, index: Tensor) -> Rung:
        """Return the rung of each gate, `index` of shape `gates`."""
        if not self.gates:
            k = int(index)
            return Rung(self.levels(k), self.scales()[k], k)
        grids = self.grids()
        scale = sum((index == k) * scale for k, scale in enumerate(self.scales()))
        if grids is None:
            books = tuple(all_levels(self.levels(k), self.log2_scale) for k in range(len(self.ladder)))
            return Rung(BroadcastTable(books, index), scale)
        fields = torch.tensor([[g.start, g.step, g.count] for g in grids], device=index.device)
        start, step, count = fields[index].unbind(-1)
        return Rung(BroadcastGrid(start, step, count), scale)


class InputQuantizer(Quantizer):
    """An input quantizer rounds a layer's input deterministically, at an unknown width, with a scale for each rung."""

    def __init__(
        self, ladder: Ladder, sample: Tensor, prior: WidthPrior | None = None, estimator: Estimator | None = None
    ) -> None:
        super().__init__(ladder, prior=prior, estimator=estimator)
        if not sample.is_meta:
            self.calibrate(sample)

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Set every rung's scale to the one with the least squared rounding error on `sample`."""
        flat = thinned(sample.detach().reshape(-1))
        for k in range(len(self.ladder)):
            self.log2_scale[k] = best_log2_scale(flat, self.levels(k), 1).reshape(())

    def forward(
        self,
        x: Tensor,
        onehot: Tensor,
        error: Tensor | float | None = None,
        scales: Tensor | None = None,
        rung: int | None = None,
    ) -> Tensor:
        """Return `scale * nearest(x / scale)` on the rung that the one-hot `onehot` `[B]` names.

        Args:
            x: the input.
            onehot: drawn rung.
            error: what floating point may have taken from the input; with it, a tie that was computed as a little less
                is rounded up like every tie, as in the integer model. None: round quickly instead.
            scales: the scale of every rung, where they are known already.
            rung: the drawn one as a number, where it is known already.
        """
        grids = self.grids()
        if grids is not None and error is None:
            return round_input(x, onehot, self.scales() if scales is None else scales, grids, rung)
        drawn = self.rung(onehot.detach().argmax(-1))
        gradient = torch.is_grad_enabled()  # without one, draws can be run together by torch.func.vmap
        u = (x if error is None else x + error) / drawn.scale
        value = drawn.scale * nearest_level(u, drawn.levels, straight_through=gradient)
        if not onehot.requires_grad:
            return value
        every = self.scales().detach()

        def inner(grad: Tensor, part: Part) -> Tensor:
            here = part(x.detach())
            return inner_products(grad, [s * nearest_level(here / s, self.levels(k)) for k, s in enumerate(every)])

        return gate_gradient(value, onehot, inner)


def rounder(quantizer: InputQuantizer, onehot: Tensor, exact: bool, first: bool) -> Callable[[Tensor], Tensor]:
    """Return what rounds a layer's input.

    Args:
        quantizer: of the input.
        onehot: its rung.
        exact: whether the network computes in float64, and ties are those of integers.
        first: whether the input is the network's own.
    """
    if not exact:
        return lambda x: quantizer(x, onehot)
    # a network may itself have made its input float32, which nothing has computed otherwise
    return lambda x: quantizer(x.double(), onehot, 0.0 if first else error_of_sums(x))


@torch.no_grad()
def error_of_sums(x: Tensor) -> Tensor:
    """Return what a float64 tensor of sums and averages may err by, below the distance of any two of its numbers.

    In the integer model they have at most 40 bits in one step, so two that differ do so by `2^-40` of the largest.
    """
    size = x.abs()
    return ERROR * torch.where(size.isfinite(), size, 0).max() if x.numel() else x.sum()


@torch.no_grad()
def error_of_values(x: Tensor) -> Tensor:
    """Return what each number of a float64 tensor may err by by itself, such as the value of a function."""
    return ERROR * x.abs()
