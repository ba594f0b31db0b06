"""Losses that were measured are kept, so that a fit that was killed measures none of them again."""

from __future__ import annotations

from typing import Any

from probq.training.refinement.space import State


class MeasuredLosses:
    """Measured losses belong to states of a space of widths.

    Attributes:
        losses: in nats for one example.
    """

    def __init__(self) -> None:
        self.losses: dict[State, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return them."""
        return {"losses": [[list(state), loss] for state, loss in self.losses.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add what `state_dict` gave."""
        self.losses.update({tuple(state): loss for state, loss in state_dict["losses"]})
