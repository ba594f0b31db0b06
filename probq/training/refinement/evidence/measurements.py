"""Measurements of widths outlive a fit that was killed, which measures none of them again."""

from __future__ import annotations

from typing import Any

from probq.training.refinement.evidence.opinions import Rows
from probq.training.refinement.evidence.space import State


class Measurements:
    """Measurements are losses of states of a space of widths, and what experts said about its options.

    Attributes:
        losses: in nats for one example.
        opinions: of each expert, or None before they were asked.
    """

    def __init__(self) -> None:
        self.losses: dict[State, float] = {}
        self.opinions: list[Rows] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return them."""
        losses = [[list(state), loss] for state, loss in self.losses.items()]
        return {"losses": losses, "opinions": self.opinions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add what `state_dict` gave."""
        self.losses.update({tuple(state): loss for state, loss in state_dict["losses"]})
        self.opinions = state_dict.get("opinions")
