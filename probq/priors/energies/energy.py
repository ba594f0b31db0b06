"""Energies over widths say what each choice of widths adds to the loss, quantizer by quantizer and pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from probq.priors.energies import energy_parts
from probq.priors.energies.energy_file import read, write
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError

if TYPE_CHECKING:
    import pandas

NATS = "nats for one example"
OF_CHOICES = "nats of log-probability"  # of a choice of widths, whatever the number of examples
LEAST_RISE = 1e-6  # from a rung to the next narrower one; what float32 leaves of equal losses


@dataclass(frozen=True, eq=False)
class Energy:
    """An energy of widths, in nats of loss for one example where its criterion measures a loss:

        E(w) = sum_i unary_i(w_i) + sum_{i < j} pairwise_ij(w_i, w_j)

    It is 0 where every quantizer takes its widest rung. Energies of the same quantizers can be added and subtracted,
    multiplied and divided by numbers. Criteria make them: `probq.criteria.loss(q, batches)` and others.

    Args:
        names: of the quantizers that have a choice.
        widths: bits of the rungs of each, ascending; those of vectors may be fractions.
        unary: energy of each rung of each quantizer, 0 at the widest.
        pairwise: `[R, R]` over all rungs of all quantizers one after the other, symmetric, 0 between rungs of one
            quantizer; None where quantizers do not interact.
        label: of the criterion, for tables and pictures.
        unit: of the numbers.
        tensors: what each quantizer rounds, in words that criteria find, so that an energy of another network or plan
            is refused even where names and widths are the same; None where nobody knows.

    Raises:
        ProbqError: if the parts do not fit one another, or are not finite.

    Example:
        >>> energy = Energy(("a.weight",), ((2, 4, 8),), ([0.5, 0.1, 0.0],))
        >>> energy({"a.weight": 4}), (2 * energy)({"a.weight": 2}), (energy - energy / 2)({"a.weight": 2})
        (0.1, 1.0, 0.25)
    """

    names: tuple[str, ...]
    widths: tuple[tuple[float, ...], ...]
    unary: tuple[np.ndarray, ...]
    pairwise: np.ndarray | None = None
    label: str = "energy"
    unit: str = NATS
    tensors: tuple[str, ...] | None = None
    __array_ufunc__: ClassVar[None] = None  # so that numbers of numpy leave products to this class

    def __post_init__(self) -> None:
        names = energy_parts.texts("names", self.names)
        widths, unary = energy_parts.rows(names, self.widths, self.unary)
        for field, value in (("names", names), ("widths", widths), ("unary", unary)):
            object.__setattr__(self, field, value)
        energy_parts.texts("label and unit", (self.label, self.unit))
        if self.tensors is not None:
            object.__setattr__(self, "tensors", energy_parts.texts("tensors", self.tensors))
            if len(self.tensors) != len(names):
                raise ProbqError(f"an energy has one text of its tensors for each name, not {len(self.tensors)}")
        if self.pairwise is not None:
            object.__setattr__(self, "pairwise", energy_parts.pairs(widths, self.pairwise))

    def __len__(self) -> int:
        """Return the number of rungs of all quantizers."""
        return sum(map(len, self.widths))

    def block(self, one: str, other: str) -> np.ndarray:
        """Return the energies of a pair, `[rungs of one, rungs of the other]`, zeros if there are none.

        Raises:
            ProbqError: if it does not know one of the names.
        """
        place = dict(zip(self.names, energy_parts.places(self.widths), strict=True))
        for name in (one, other):
            if name not in place:
                raise ProbqError(f"the energy does not know {name!r:.80}; it knows {', '.join(self.names)}")
        if self.pairwise is None:
            return np.zeros((place[one].stop - place[one].start, place[other].stop - place[other].start))
        return self.pairwise[place[one], place[other]]

    def __call__(self, widths: Mapping[str, Any]) -> float:
        """Return the energy of a choice of widths, such as `Assignment.widths`.

        Raises:
            ProbqError: if a quantizer has no width, one that is not on its ladder, or one for each channel.
        """
        rungs = self._rungs(widths)
        total = float(sum(row[rung] for row, rung in zip(self.unary, rungs, strict=True)))
        if self.pairwise is not None:
            starts = [place.start for place in energy_parts.places(self.widths)]
            chosen = np.add(starts, rungs)
            total += float(self.pairwise[np.ix_(chosen, chosen)].sum()) / 2
        return total

    def _rungs(self, widths: Any) -> list[int]:
        if not isinstance(widths, Mapping):
            raise ProbqError(
                f"an energy takes widths in bits by name, such as Assignment.widths, not {type(widths).__name__}"
            )
        found = []
        for name, bits in zip(self.names, self.widths, strict=True):
            wanted = np.unique(np.asarray(widths[name])) if name in widths else np.zeros(0)
            if len(wanted) != 1 or wanted[0] not in bits:
                raise ProbqError(f"the energy needs one width of {bits} for {name}, not {widths.get(name)!r:.80}")
            found.append(bits.index(wanted[0]))
        return found

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        self._check_alike(other)
        both = np.zeros((len(self), len(self)))
        for own in (self.pairwise, other.pairwise):
            both = both if own is None else both + own
        unary = tuple(a + b for a, b in zip(self.unary, other.unary, strict=True))
        label, tensors = f"{self.label} + {other.label}", self.tensors or other.tensors
        return replace(self, unary=unary, pairwise=both if both.any() else None, label=label, tensors=tensors)

    def __sub__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        taken = f"({other.label})" if " + " in other.label or " - " in other.label else other.label
        return replace(self + -other, label=f"{self.label} - {taken}")

    def _check_alike(self, other: Energy) -> None:
        """Raise unless two energies can be added."""
        if (self.names, self.widths) != (other.names, other.widths):
            raise ProbqError("energies of different quantizers or ladders cannot be added")
        if self.tensors and other.tensors and self.tensors != other.tensors:
            raise ProbqError("energies of different networks or plans cannot be added")
        if self.unit != other.unit:
            raise ProbqError(f"energies in {self.unit} and in {other.unit} cannot be added; choose one")

    def _map(self, function: Callable[[np.ndarray], np.ndarray]) -> Energy:
        pairwise = None if self.pairwise is None else function(self.pairwise)
        return replace(self, unary=tuple(map(function, self.unary)), pairwise=pairwise)

    def __mul__(self, factor: float) -> Energy:
        return self._map(lambda row: float(factor) * row) if is_real(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Energy:
        if not is_real(divisor):
            return NotImplemented
        if divisor == 0:
            raise ProbqError("an energy cannot be divided by 0")
        return self._map(lambda row: row / float(divisor))

    def __neg__(self) -> Energy:
        return self._map(lambda row: 0.0 - row)  # without negative zeros

    def to_nats(self, factor: float) -> Energy:
        """Return the energy in nats for one example, where one of its own unit is worth `factor` nats.

        A prior needs nats. The factor is a judgement, but for `probq.criteria.search`, whose energies times its own
        `temperature` are nats of loss; a fit to a few energies of `probq.criteria.loss` is another way to one.

        Args:
            factor: nats for one example, above 0.

        Raises:
            ProbqError: if it is no such number.

        Example:
            >>> Energy(("a",), ((2, 4),), ([3.0, 0.0],), unit="step").to_nats(0.5)({"a": 2})
            1.5
        """
        if not is_real(factor) or not 0 < factor < math.inf:
            raise ProbqError(f"to_nats takes how many nats one {self.unit} is worth, above 0, not {factor!r:.80}")
        return replace(factor * self, unit=NATS)

    def monotone(self) -> Energy:
        """Return the energy in which each rung of a quantizer costs more than the next wider one, pairs as they are.

        What a few examples happened to like better on fewer bits is then no reason to take them. A rung costs at least
        1e-6 more than the next wider one, so that the widest of equal ones is taken.

        Example:
            >>> Energy(("a",), ((2, 4, 8),), ([0.5, -0.1, 0.0],)).monotone().unary[0]
            array([5.e-01, 1.e-06, 0.e+00])
        """
        rows = []
        for row in self.unary:
            rising = row[::-1].copy()
            for rung in range(1, len(rising)):
                rising[rung] = max(rising[rung], rising[rung - 1] + LEAST_RISE)
            rows.append(rising[::-1])
        return replace(self, unary=tuple(rows))

    @property
    def negative(self) -> int:
        """Count the unary energies below 0, of narrower rungs that the criterion found better than the widest one."""
        return int(sum((row < 0).sum() for row in self.unary))

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each quantizer, a column for each width in bits; NaN where a ladder lacks it."""
        import pandas  # takes as long to import as all of probq

        rows = [dict(zip(bits, row, strict=True)) for bits, row in zip(self.widths, self.unary, strict=True)]
        columns = sorted({b for bits in self.widths for b in bits})
        frame = pandas.DataFrame(rows, index=pandas.Index(self.names, name="quantizer"), columns=columns)
        frame.attrs |= {"label": self.label, "unit": self.unit}
        return frame

    def save(self, path: str | PathLike[str]) -> None:
        """Write the energy as safetensors with a JSON header; `Energy.load` reads it.

        Raises:
            ProbqError: if the file cannot be written.
        """
        tensors = {f"unary.{name}": row for name, row in zip(self.names, self.unary, strict=True)}
        if self.pairwise is not None:
            tensors["pairwise"] = self.pairwise
        content = {"names": list(self.names), "widths": [list(bits) for bits in self.widths], "label": self.label}
        content |= {"unit": self.unit} | ({} if self.tensors is None else {"tensors": list(self.tensors)})
        write(path, content, tensors)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Energy:
        """Return the energy of a file that `save` wrote.

        Raises:
            ProbqError: if there is no such file, it is damaged, or of another kind.
        """
        content, tensors = read(path)
        try:
            names: Sequence[str] = content["names"]
            unary = tuple(tensors[f"unary.{name}"] for name in names)
            unit = str(content.get("unit", NATS))  # files of before had no other
            label, texts = str(content["label"]), content.get("tensors")
            return cls(tuple(names), content["widths"], unary, tensors.get("pairwise"), label, unit, texts)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, ProbqError) as error:
            raise ProbqError(f"{path} is not a valid energy ({error!s:.200}); save it again") from error

    def __repr__(self) -> str:
        kind = "additive" if self.pairwise is None else "pairwise"
        return f"Energy({self.label}, {kind}: {len(self.names)} quantizers, {len(self)} rungs)"
