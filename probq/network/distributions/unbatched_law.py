"""This module has the base class of laws over a whole tensor."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from probq.utils.errors import ProbqError

ONE_DRAW = (
    "a network runs with one draw at a time, so use Predictive(parallel=False), vectorize_particles=False, and no "
    "plate around model and guide"
)


class UnbatchedLaw(TorchDistribution):
    """An unbatched law is one over a whole tensor."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 0)
    has_rsample = True

    def expand(self, batch_shape: Any, _instance: Any = None) -> UnbatchedLaw:
        """Return the law itself, which has no batch.

        Raises:
            ProbqError: if it is to have one.
        """
        if tuple(batch_shape):
            raise ProbqError(f"codes were to be drawn {list(batch_shape)} times at once: {ONE_DRAW}")
        return self
