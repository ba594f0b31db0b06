"""These laws give each sub-vector of a weight one code, the number of a vector."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.vectors import Vectors
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes


class VectorCodes(Codes):
    """This law of the codes of sub-vectors is a softmax over the `nearest` vectors of a table.

    With `u = location / scale` of one sub-vector, the `m` vectors `c_1, c_2, ...` next to it, the nearest first, and
    `|v|^2 = sum_i h_i v_i^2` with the importance `h` of each number,

        P(c_j) proportional to exp(-|u - c_j|^2 / (2 spread D)),    D = mean of |c_j - c_1|^2, j > 1.

    Of two vectors it is the discretised logistic law of `Codes` along the line that joins them; with `d = 1` on a grid
    it is that law itself. `m = 1` is deterministic.

    Args:
        location: real-valued locations, shaped like the weight.
        scale: the step, positive, broadcastable to the location.
        levels: the vectors.
        spread: the spread of the law, positive.
        nearest: number `m` of vectors with positive probability.
    """

    levels: Vectors

    @property
    def fused(self) -> bool:
        """Return False, because the fused draw is that of single levels."""
        return False

    def still(self) -> VectorCodes:
        """Return the same law without the gradient of its location and scale."""
        return VectorCodes(self.location.detach(), self.scale.detach(), self.levels, self.spread, self.nearest)

    def for_weights(self, values: Tensor) -> Tensor:
        """Return numbers of sub-vectors `[rows, n, d]` in the shape of the location."""
        return values.reshape(self.location.shape)

    def window(self) -> tuple[Tensor, Tensor]:
        """Return the vectors near each sub-vector `[rows, n, d, m]`, and log-probabilities `[rows, n, 1, m]`."""
        own = self.location / self.scale
        codes, u = self.levels.closest(own, self.nearest), self.levels.blocks(own).unsqueeze(-2)
        near, h = self.levels.chosen(codes), self.levels.importance.unsqueeze(-2)
        distance = (h * (u - near).square()).sum(-1)
        apart = (h * (near - near[..., :1, :]).square()).sum(-1).sum(-1, keepdim=True) / max(self.nearest - 1, 1)
        width = 2 * self.spread * torch.where(apart > 0, apart, torch.ones_like(apart))
        log_probs = torch.log_softmax(-distance / width, -1)
        return near.transpose(-1, -2), log_probs.unsqueeze(-2)

    @property
    def variance(self) -> Tensor:
        """Return the exact variance of each weight's level, shape of the location."""
        levels, log_probs = self.window()
        probs = log_probs.exp()
        mean = (levels * probs).sum(-1, keepdim=True).detach()
        return self.for_weights(((levels - mean).square() * probs).sum(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of one vector for each sub-vector, a scalar, `-inf` where one is not near."""
        levels, log_probs = self.window()
        own = self.levels.blocks(value.detach()).unsqueeze(-1)
        hit = torch.isclose(levels, own, rtol=1e-5, atol=1e-6).all(-2)
        chosen = torch.where(hit, log_probs.squeeze(-2), torch.full_like(hit, -math.inf, dtype=log_probs.dtype))
        return chosen.amax(-1).sum()


class UniformVectorCodes(UniformCodes):
    """This prior makes every vector of the tables equally probable for every sub-vector.

    Args:
        shape: the shape of the weight, or of some of its rows; all of it is one event.
        levels: the vectors.
        device: where draws are made.
    """

    levels: Vectors

    @property
    def _codes(self) -> tuple[int, int]:
        places = len(self.levels.importance)
        return self.event_shape.numel() // self.levels.importance.numel(), places

    def log_count(self) -> float:
        """Return `sum over sub-vectors of log K` in nats."""
        return math.prod(self._codes) * math.log(self.levels.count)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independent vectors, `[*sample_shape, *shape]`."""
        size = torch.Size(sample_shape).numel()
        codes = torch.randint(self.levels.count, (size, *self._codes), device=self.device)
        drawn = torch.stack([self.levels.at(part) for part in codes])
        return drawn.reshape(*sample_shape, *self.event_shape)
