"""A checkpoint keeps the steps of a history as columns, which stay small in long fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probq.training.svi.history import BudgetState, Step

PHASES = ("search", "trial", "tune")
COUNTS = ("step", "epoch")
NUMBERS = ("loss", "nll", "kl", "percent", "multiplier", "distillation")


def steps_to_columns(steps: Sequence[Step]) -> dict[str, Tensor]:
    """Return the steps as columns: `[N]` each, and `[N, budgets, 3]` for further budgets.

    Example:
        >>> step = Step(0, 0, "tune", 1.0, 0.75, 0.25, 3.0, None, 0.0)
        >>> steps_from_columns(steps_to_columns([step])) == [step]
        True
    """
    columns = {name: torch.tensor([getattr(s, name) for s in steps], dtype=torch.int64) for name in COUNTS}
    columns |= {name: torch.tensor([getattr(s, name) for s in steps], dtype=torch.float64) for name in NUMBERS}
    columns["phase"] = torch.tensor([PHASES.index(s.phase) for s in steps], dtype=torch.uint8)
    limits = [math.nan if s.limit is None else s.limit for s in steps]
    columns["limit"] = torch.tensor(limits, dtype=torch.float64)
    further = [[(b.percent, b.limit, b.multiplier) for b in s.further] for s in steps]
    columns["further"] = torch.tensor(further, dtype=torch.float64).reshape(len(steps), -1, 3)
    return columns


def steps_from_columns(columns: Mapping[str, Tensor]) -> list[Step]:
    """Return the steps of columns."""
    rows: dict[str, list[Any]] = {name: column.tolist() for name, column in columns.items()}
    return [
        Step(
            phase=PHASES[rows["phase"][k]],
            limit=None if math.isnan(rows["limit"][k]) else rows["limit"][k],
            further=tuple(BudgetState(*state) for state in rows["further"][k]),
            **{name: rows[name][k] for name in (*COUNTS, *NUMBERS)},
        )
        for k in range(len(rows["step"]))
    ]
