"""This law of codes has log-odds of its own for every weight and level."""

from __future__ import annotations

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import all_levels
from probq.network.distributions.codes import Codes

MOST_LEVELS = 16
LEAST_LOG_PROB = -10.0  # of a level when training begins: not so far off that it could not come back


class CategoricalCodes(Codes):
    """A free categorical law has `P(l_j) = softmax(logits)_j` over all `K` levels of a codebook.

    Args:
        logits: log-odds of every level for every weight, `[*shape, K]`.
        scale: the step.
        levels: a `Grid` or ascending levels `[K]`.
        hard: whether a "draw" is the mode, as when codes are rounded.

    Source: E. Jang, S. Gu, B. Poole, 2017, "Categorical Reparameterization with Gumbel-Softmax".

    Example:
        >>> from probq.codebooks import ternary
        >>> CategoricalCodes(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor(1.0), ternary()).mode
        tensor([1.])
    """

    def __init__(self, logits: Tensor, scale: Tensor, levels: Grid | Tensor, hard: bool = False) -> None:
        super().__init__(logits[..., 0], scale, levels, torch.ones_like(scale), logits.shape[-1])
        self.logits, self.hard = logits, hard

    def all_levels(self) -> Tensor:
        """Return all levels `[K]`."""
        return all_levels(self.levels, self.logits)  # type: ignore[arg-type]

    def window(self) -> tuple[Tensor, Tensor]:
        """Return all levels and their log-probabilities, both `[*shape, K]`."""
        return self.all_levels().expand(self.logits.shape), torch.log_softmax(self.logits, -1)

    @property
    def mode(self) -> Tensor:
        """Return the most probable level of each weight."""
        return self.all_levels()[self.logits.argmax(-1)]

    @property
    def fused(self) -> bool:
        """Return False, because probabilities do not follow from a location."""
        return False

    def draw(self) -> Tensor:
        """Draw one level for each weight, with the gradient of the exact mean; a hard law gives its mode."""
        if not self.hard:
            return self.draw_window()
        mean = self.mean
        return self.mode.detach() + (mean - mean.detach())


@torch.no_grad()
def logits_like(law: Codes) -> Tensor:
    """Return logits over all levels of a code law with `m = K`, to begin from, `[*shape, K]`."""
    return law.window()[1].clamp_min(LEAST_LOG_PROB)


def logits_at(codes: Tensor, count: int) -> Tensor:
    """Return logits that make given codes almost certain, `[*shape, K]`."""
    onehot = torch.nn.functional.one_hot(codes.long(), count).to(torch.get_default_dtype())
    return LEAST_LOG_PROB * (1 - onehot)
