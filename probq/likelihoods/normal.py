"""Targets are real numbers under this likelihood."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions import Normal as NormalLaw

from probq.likelihoods.network_likelihood import NetworkLikelihood
from probq.utils.errors import ProbqError

LEAST_SD = 1e-6


class Normal(NetworkLikelihood, nn.Module):
    """This likelihood is `target ~ Normal(output, sd)`.

    Args:
        sd: standard deviation of the noise; by default it is learned; `fit` starts it at the residuals of
            the float network.
    """

    needs_residuals: ClassVar[bool] = True

    def __init__(self, sd: float | None = None) -> None:
        super().__init__()
        if sd is not None and not sd > 0:
            raise ProbqError(f"Normal(sd=...) takes a standard deviation above 0, not {sd}")
        self.log_sd = nn.Parameter(torch.tensor(sd or 1.0).log(), requires_grad=sd is None)

    def forward(self, output: Tensor) -> Distribution:
        """Return the law of the target given the output."""
        return NormalLaw(output, self.log_sd.exp())

    @torch.no_grad()
    def start(self, residuals: Tensor) -> None:
        """Start a noise that is learned at the root mean square of the residuals."""
        if self.log_sd.requires_grad:
            self.log_sd.copy_(residuals.double().square().mean().sqrt().clamp_min(LEAST_SD).log())

    @property
    def noise_variance(self) -> float:
        """Return the square of the standard deviation."""
        return float(self.log_sd.detach().exp()) ** 2

    def to_entry(self) -> dict[str, Any]:
        """Return the standard deviation, and whether it is learned."""
        return {"kind": "normal", "learned": self.log_sd.requires_grad, "sd": float(self.log_sd.detach().exp())}
