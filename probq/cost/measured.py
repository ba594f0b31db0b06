"""This cost was measured: latency, energy or area of each layer at each pair of widths, from a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np

from probq.cost.layer_costs import FLOAT_BITS
from probq.cost.network_cost import NetworkCost
from probq.network.tracing.layer import Layer
from probq.utils.errors import ProbqError

COLUMNS = ("layer", "weight_bits", "input_bits", "cost")


@dataclass(frozen=True, repr=False)
class CostTable(NetworkCost):
    """This cost is looked up in measurements; `table` makes it.

    Attributes:
        entries: cost by layer, weight bits and input bits.
        label: its name.
    """

    entries: Mapping[tuple[str, int, int], float] = field(hash=False)
    label: str = "table"

    @property
    def __name__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<cost table {self.label!r} of {len({name for name, _, _ in self.entries})} layers>"

    def __call__(self, layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
        """Return the measured cost, of the widths' shape.

        Raises:
            ProbqError: where it was not measured.
        """
        every = np.broadcast(weight_bits, input_bits)
        self.check(layer, np.unique(weight_bits).tolist(), np.unique(input_bits).tolist())
        found = [self.entries[layer.name, int(w), int(a)] for w, a in every]
        return np.array(found).reshape(every.shape) if every.shape else found[0]

    def check(self, layer: Layer, weight_bits: Sequence[float], input_bits: Sequence[float]) -> None:
        """Raise unless every pair of these widths was measured."""
        missing = [(w, a) for w in weight_bits for a in input_bits if (layer.name, w, a) not in self.entries]
        if missing:
            listed = ", ".join(f"{w} x {a}" for w, a in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ProbqError(
                f"the cost table has no row for layer {layer.name} at {listed} bits (weight x input); measure these, "
                "or leave the widths out of the plan's ladders"
            )

    def reference(self, layer: Layer) -> float:
        """Return the cost at 32 x 32 bits, or where that was not measured, of the dearest row of the layer."""
        own = [cost for (name, _, _), cost in self.entries.items() if name == layer.name]
        if not own:
            raise ProbqError(f"the cost table has no row for layer {layer.name}; it needs some for every layer")
        return self.entries.get((layer.name, FLOAT_BITS, FLOAT_BITS), max(own))

    def to_entry(self) -> dict[str, Any]:
        """Return the name and the rows."""
        return {"cost": self.label, "table": [[*key, cost] for key, cost in self.entries.items()]}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> CostTable:
        """Return the table of what `to_entry` gave."""
        rows = {(str(layer), int(w), int(a)): float(cost) for layer, w, a, cost in entry["table"]}
        return cls(rows, str(entry["cost"]))


def table(source: Any, name: str = "table") -> CostTable:
    """Return a cost from measurements on the user's hardware.

    They are, for example, the latency or the energy of every layer at every pair of widths.

        cost = sum over layers of table[layer, weight bits, input bits]

    Args:
        source: a `pandas.DataFrame`, or the path of a CSV file, with the columns `layer` (its name, as in
            `probq.layers`), `weight_bits`, `input_bits` and `cost` (any unit that adds up over layers). Inputs that no
            quantizer reaches, and layers that stay float, have 32 bits.
        name: the name of the cost, in messages and pictures.

    Returns:
        A cost, for `Budget(limit=..., cost=...)` and wherever a cost is taken. A percentage refers to the rows at
        32 x 32 bits, or without these to the dearest row of each layer.

    Raises:
        ProbqError: if a column is missing, or a row is given twice, or is negative or not a number. Widths that the
            plan needs and the table lacks are named when the cost is first used.

    Example:
        >>> import pandas
        >>> rows = [("fc", 4, 8, 1.5), ("fc", 8, 8, 2.5)]
        >>> latency = table(pandas.DataFrame(rows, columns=["layer", "weight_bits", "input_bits", "cost"]))
        >>> latency(Layer("fc", "fc.weight", "fc.input", 12, 12, 4, 3, (3, 4)), 4, 8)
        1.5
    """
    frame = _frame(source)
    lost = [column for column in COLUMNS if column not in frame.columns]
    if lost:
        raise ProbqError(f"the cost table has no column {lost[0]!r}; it needs {', '.join(COLUMNS)}")
    entries: dict[tuple[str, int, int], float] = {}
    for row in frame[list(COLUMNS)].itertuples(index=False):
        place, cost = f"layer {row[0]} at {row[1]} x {row[2]} bits", _number(row[3])
        widths = [_number(bits) for bits in row[1:3]]
        if not all(bits >= 0 and bits.is_integer() for bits in widths):
            raise ProbqError(f"the cost table names {place}; widths are whole numbers of bits")
        key = (str(row[0]), int(widths[0]), int(widths[1]))
        if not (math.isfinite(cost) and cost >= 0):
            raise ProbqError(f"the cost table gives {row[3]} for {place}; a cost is a finite number, 0 or more")
        if key in entries:
            raise ProbqError(f"the cost table has two rows for {place}; keep one")
        entries[key] = cost
    if not entries:
        raise ProbqError("the cost table has no rows; it needs some for every layer")
    return CostTable(entries, name)


def _frame(source: Any) -> Any:
    import pandas

    if isinstance(source, pandas.DataFrame):
        return source
    if not isinstance(source, str | PathLike):
        raise ProbqError(f"cost.table takes a pandas.DataFrame or the path of a CSV file, not {type(source).__name__}")
    try:
        # as written: a layer may be called NA, or nothing
        return pandas.read_csv(source, dtype={"layer": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ProbqError(f"{source} cannot be read as CSV ({error!s:.100}); give a file with a header row") from error


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
