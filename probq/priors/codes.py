"""These priors over the codes of weights are real-valued laws, rounded to the levels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from probq.codebooks import Ladder
from probq.codebooks.rounding.scales import LEAST_GAIN
from probq.network.distributions.uniform_codes import UniformCodes
from probq.priors.code_prior import CodePrior, OnRung
from probq.priors.prior_codes import PriorCodes
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class RoundedPrior(CodePrior):
    """A code has the law of `level = nearest((centre + sd e) / scale)`, a real weight rounded to its codebook.

    Attributes:
        sd: standard deviation in the unit of the weights; None: one for each weight tensor is learned, starting at
            that of the trained weight (empirical Bayes).
        centred: whether the centre is the trained weight, instead of 0.

    Raises:
        ProbqError: if `sd` is not positive.
    """

    sd: float | None = None
    centred: bool = False

    def __post_init__(self) -> None:
        if self.sd is not None and not 0 < self.sd < math.inf:
            raise ProbqError(f"{type(self).__name__}(sd=...) takes a number above 0 or None (learned), not {self.sd!r}")

    @property
    def zero(self) -> float:
        """Return the probability of a spike at 0."""
        return 0.0

    def log_cdf(self, z: Tensor) -> Tensor:
        """Return the logarithm of the distribution function of `e`, which has mean 0 and variance 1."""
        raise NotImplementedError

    def noise(self, shape: torch.Size, device: torch.device | None) -> Tensor:
        """Draw `e`."""
        raise NotImplementedError

    def tensors(self, weight: Tensor, ladder: Ladder) -> dict[str, Tensor]:
        """Return the logarithm of the standard deviation, where it is learned, and the centre, if it is not 0."""
        own: dict[str, Tensor] = {}
        if self.sd is None:
            own["log_sd"] = nn.Parameter(weight.std(correction=0).clamp_min(1e-6).log())
        if self.centred:
            own["centre"] = weight.clone()
        return own

    def law(self, on: OnRung) -> UniformCodes:
        """Return the law of the codes on a rung; a folded normalisation's gain scales the real weight."""
        sd = on.own["log_sd"].exp() if self.sd is None else torch.tensor(self.sd, device=on.device)
        centre = on.own["centre"] if self.centred else torch.zeros((), device=on.device)
        if on.gain is not None:
            sd, centre = sd * on.gain.abs().clamp_min(LEAST_GAIN), centre * on.gain
        return PriorCodes(self, on.shape, on.levels, on.scale, sd, centre)


@dataclass(frozen=True)
class Normal(RoundedPrior):
    """This prior is `P(l_j) = Phi((c_j s - centre) / sd) - Phi((c_{j-1} s - centre) / sd)`, `c_j` the midpoints.

    The end levels have the tails. Fields as in `RoundedPrior`.

    Source: C. Louizos, M. Reisser, T. Blankevoort, E. Gavves, M. Welling, 2019, "Relaxed Quantization for
    Discretized Neural Networks" (laws rounded to a grid).

    Example:
        >>> Normal(sd=0.5).centred
        False
    """

    kind: ClassVar[str] = "normal"

    def log_cdf(self, z: Tensor) -> Tensor:
        """Return `log Phi(z)`."""
        return torch.special.log_ndtr(z)

    def noise(self, shape: torch.Size, device: torch.device | None) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(shape, device=device)


@dataclass(frozen=True)
class Laplace(RoundedPrior):
    """This prior is that of `Normal` with `F(z) = exp(sqrt(2) z) / 2` for `z < 0`: heavier tails, more zeros.

    Source: P. M. Williams, 1995, "Bayesian Regularization and Pruning Using a Laplace Prior".
    """

    kind: ClassVar[str] = "laplace"

    def log_cdf(self, z: Tensor) -> Tensor:
        """Return `log F(z)`."""
        z = math.sqrt(2) * z
        return torch.where(z < 0, z - math.log(2), torch.log1p(-torch.exp(-z.clamp_min(0)) / 2))

    def noise(self, shape: torch.Size, device: torch.device | None) -> Tensor:
        """Draw Laplace numbers of variance 1."""
        signs = torch.randint(0, 2, shape, device=device) * 2 - 1
        return signs * torch.empty(shape, device=device).exponential_() / math.sqrt(2)


@dataclass(frozen=True)
class SpikeSlab(RoundedPrior):
    """This prior is `P(l) = spike [l = 0] + (1 - spike) slab(l)`; on a codebook without a level 0, the slab alone.

    Attributes:
        spike: probability of the spike, 0 to 1.
        slab: the rest's prior.

    Raises:
        ProbqError: if a field has a value that it cannot take.

    Source: T. J. Mitchell, J. J. Beauchamp, 1988, "Bayesian Variable Selection in Linear Regression".
    """

    kind: ClassVar[str] = "spike and slab"
    sd: float | None = field(default=None, init=False)
    centred: bool = field(default=False, init=False)
    spike: float = 0.5
    slab: RoundedPrior = field(default_factory=Normal)

    def __post_init__(self) -> None:
        if not 0 < self.spike < 1:
            raise ProbqError(f"SpikeSlab(spike=...) takes a probability between 0 and 1, not {self.spike!r}")
        if not isinstance(self.slab, RoundedPrior) or isinstance(self.slab, SpikeSlab):
            raise ProbqError(f"SpikeSlab(slab=...) takes a Normal or Laplace of probq.priors, not {self.slab!r}")
        object.__setattr__(self, "sd", self.slab.sd)
        object.__setattr__(self, "centred", self.slab.centred)

    @property
    def zero(self) -> float:
        """Return the probability of the spike."""
        return self.spike

    def log_cdf(self, z: Tensor) -> Tensor:
        """Return the logarithm of the slab's distribution function."""
        return self.slab.log_cdf(z)

    def noise(self, shape: torch.Size, device: torch.device | None) -> Tensor:
        """Draw the slab's noise."""
        return self.slab.noise(shape, device)
