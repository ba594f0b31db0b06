"""`Codes`, over the levels nearest to a location, is one of the two discrete laws of probq; `Widths` is the other.

Both have exact probabilities, entropies and Kullback-Leibler divergences, all in nats, and draws with a hard forward
value whose gradient is a straight-through one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import BroadcastGrid, Levels, decode, first_code, largest_count, nearest_level
from probq.codebooks.rounding.stochastic import LevelGradient, log_difference, times_log, two_nearest
from probq.codebooks.rounding.vectors import Vectors
from probq.network.distributions.unbatched_law import UnbatchedLaw
from probq.utils.errors import ProbqError


class Codes(UnbatchedLaw):
    """This law of the levels that weights take is a discretised logistic law over the `nearest` ones to a location.

    With `u = location / scale` and the `m` neighbouring levels `l_1 < ... < l_m` around `u`, whose midpoints are
    `c_1 .. c_{m-1}` (`c_0 = -inf`, `c_m = inf`) and `F` the logistic distribution function,

        P(l_j) = F((c_j - u) / (spread d)) - F((c_{j-1} - u) / (spread d)),    d = mean distance of levels.

    `m = 1` is deterministic rounding, `m = 2` learned stochastic rounding, `m = K` the full law. A draw is one level
    for each weight (in units of the scale); its gradient is that of the law's exact mean, and for `m = 1` the
    clipped straight-through one.

    Args:
        location: real-valued locations, any shape; all of it is one event.
        scale: the step, positive, broadcastable to the location.
        levels: a `Grid`, `BroadcastGrid` or `BroadcastTable` (one for each location) or ascending levels `[K]`.
        spread: the spread of the law in steps, positive, broadcastable.
        nearest: number `m` of levels with positive probability.

    Source: C. Louizos, M. Reisser, T. Blankevoort, E. Gavves, M. Welling, 2019, "Relaxed Quantization for
    Discretized Neural Networks" (the discretised logistic law).

    Example:
        >>> from probq.codebooks import ternary
        >>> Codes(torch.tensor([0.5, 3.0]), torch.tensor(1.0), ternary(), torch.tensor(0.1)).mode
        tensor([1., 1.])
    """

    def __init__(
        self,
        location: Tensor,
        scale: Tensor,
        levels: Levels,
        spread: Tensor,
        nearest: int = 2,
        validate_args: bool | None = None,
    ) -> None:
        if nearest < 1:
            raise ProbqError(f"a code law needs at least 1 nearest level, not {nearest}")
        self.location, self.scale, self.levels, self.spread = location, scale, levels, spread
        self.nearest = min(nearest, largest_count(levels))
        self.estimate: Callable[[Codes], Tensor] | None = None  # draws whose gradient is another estimator's
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._entropy: Tensor | None = None
        super().__init__(torch.Size(), location.shape, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """Return the most probable level of each weight, the nearest one, ties up."""
        return nearest_level(self.location / self.scale, self.levels)

    @property
    def mean(self) -> Tensor:
        """Return the exact mean of the levels, shape of the location."""
        if self.nearest == 1:
            return self.mode
        levels, log_probs = self.window()
        return self.for_weights((levels * log_probs.exp()).sum(-1))

    @property
    def variance(self) -> Tensor:
        """Return the exact variance of the levels, shape of the location."""
        levels, log_probs = self.window()
        return ((levels - self.mean.detach().unsqueeze(-1)).square() * log_probs.exp()).sum(-1)

    def still(self) -> Codes:
        """Return the same law without the gradient of its location and scale."""
        return Codes(self.location.detach(), self.scale.detach(), self.levels, self.spread, self.nearest)

    def for_weights(self, values: Tensor) -> Tensor:
        """Return sums over the window, one for each number of the event, in the shape of the location."""
        return values

    def window(self) -> tuple[Tensor, Tensor]:
        """Return the `m` levels around each location and their log-probabilities, both `[*location, m]`."""
        assert not isinstance(self.levels, Vectors)  # which `VectorCodes` has
        u = self.location / self.scale
        first = first_code(u, self.levels, self.nearest)
        codes = first.unsqueeze(-1) + torch.arange(self.nearest, device=u.device)
        levels, last = decode(codes, self.levels)
        distance = (levels[..., -1] - levels[..., 0]) / max(self.nearest - 1, 1)
        distance = torch.where(distance > 0, distance, torch.ones_like(distance))
        width = (self.spread * distance).unsqueeze(-1)
        bounds = ((levels[..., 1:] + levels[..., :-1]) / 2 - u.unsqueeze(-1)) / width
        bounds = torch.where(codes[..., 1:] > last, torch.full_like(bounds, math.inf), bounds)
        upper, lower = F.pad(bounds, (0, 1), value=math.inf), F.pad(bounds, (1, 0), value=-math.inf)
        return levels, log_difference(upper, lower)

    def entropy(self) -> Tensor:
        """Return the entropy of all codes together in nats, a scalar."""
        if self._entropy is not None:
            return self._entropy
        return self.entropies().sum()

    def entropies(self) -> Tensor:
        """Return the entropy of each code in nats, shape of the location."""
        if self.nearest == 1:
            return torch.zeros_like(self.location)
        return -times_log(self.window()[1]).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of one level for each weight, a scalar.

        It is `-inf` where a level is not among the nearest.
        """
        # Pyro asks for the log-probability of the very tensor that it drew, which the fused draw already has; another
        # tensor, even of equal levels, takes the long way, for it may come from another law or carry another gradient.
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        levels, log_probs = self.window()
        hit = torch.isclose(levels, value.detach().unsqueeze(-1), rtol=1e-5, atol=1e-6) & log_probs.isfinite()
        chosen = torch.where(hit, log_probs, torch.full_like(log_probs, -math.inf)).amax(-1)
        return chosen.sum()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels `[*sample_shape, *location]`, hard forward, by default with the gradient of the exact mean."""
        if tuple(sample_shape):
            draws = [self.rsample() for _ in range(torch.Size(sample_shape).numel())]
            return torch.stack(draws).reshape(*sample_shape, *self.event_shape)
        return self.draw() if self.estimate is None else self.estimate(self)

    def draw(self) -> Tensor:
        """Draw one level for each weight, hard forward, with the gradient of the exact mean."""
        if self.fused:
            return self.draw_fused()
        if self.nearest == 1:
            return nearest_level(self.location / self.scale, self.levels, straight_through=True)
        return self.draw_window()

    @property
    def fused(self) -> bool:
        """Return whether `draw_fused` takes this law, one of the two nearest levels of a grid."""
        return isinstance(self.levels, Grid | BroadcastGrid) and self.nearest == 2

    def draw_fused(self, kind: LevelGradient = LevelGradient.MEAN) -> Tensor:
        """Draw in one pass, which also gives entropy and log-probability; see `two_nearest` of `codebooks.rounding`."""
        assert isinstance(self.levels, Grid | BroadcastGrid)
        value, self._entropy, log_prob = two_nearest(self.location, self.scale, self.spread, self.levels, kind)
        self._drawn = (value, log_prob)
        return value

    def draw_window(self) -> Tensor:
        """Draw from any levels and probabilities that `window` gives."""
        levels, log_probs = self.window()
        probs = log_probs.exp()
        draw = torch.rand_like(probs[..., :1])
        code = (draw > probs.detach().cumsum(-1)).sum(-1, keepdim=True).clamp_max(self.nearest - 1)
        mean, hard = (levels * probs).sum(-1), torch.take_along_dim(levels, code, -1).squeeze(-1)
        return self.for_weights(hard.detach() + (mean - mean.detach()))
