"""The prior of three wells lets a layer become ternary or binary, by the depth of its middle one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from probq.codebooks import Ladder
from probq.network.distributions.uniform_codes import UniformCodes
from probq.priors.code_prior import CodePrior, OnRung
from probq.priors.energy_codes import EnergyCodes
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class ThreeWells(CodePrior):
    """This prior has wells at the outermost levels `-L` and `L` and one at 0, `depth` nats deeper than they are.

        P(l) proportional to exp(depth [|l| < L/2] - steepness min(|l|, L - |l|)^power / L^power)

    The sum over all levels of the codebook is 1 exactly. On the ternary codebook `P(0) = e^depth / (e^depth + 2)`; the
    binary one has no level at 0, and both its levels have probability 1/2 whatever the depth. So a layer whose zeros
    are few makes its middle well shallow, and then three levels say hardly more than two would: with the ladder
    `ladder(1, codebooks.ternary())` each layer becomes binary or ternary in one fit, under a budget too. On wider
    codebooks the levels between wells are less probable.

    At its best depth, a layer with a share `f` of zeros costs `H(f) + (1 - f) log 2` nats for each weight, where binary
    codes cost `log 2`: more for fewer zeros than 77 %, less for more of them. So a learned depth may rather empty a
    layer than make it binary; `depth=0.0`, the deepest well of the source, leaves binary codes the cheaper ones. At
    temperatures far below 1 the loss decides, which three levels fit better.

    Attributes:
        depth: of the middle well in nats; None: one for each weight tensor is learned, starting at 0 (a parameter
            `prior_logits` of its quantizer).
        steepness: of the walls between the wells in nats, 0 or more.
        power: of the distance from a well, above 0.

    Raises:
        ProbqError: if a field has a value that it cannot take; later, if no codebook of the ladder has a level in the
            middle well and another outside of it, so that the depth would change nothing.

    Source: R. Razani, G. Morin, E. Sari, V. Partovi Nia, 2021, "Adaptive Binary-Ternary Quantization" (a regulariser
    of three wells around real weights; here the law of the codes themselves, with what makes its sum 1).

    Example:
        >>> from probq.codebooks import ternary
        >>> on = OnRung(torch.Size([3]), ternary(), torch.tensor(1.0), {})
        >>> ThreeWells(depth=1.0).law(on).log_probs(torch.tensor([-1.0, 0.0, 1.0])).exp()
        tensor([0.2119, 0.5761, 0.2119])
    """

    kind: ClassVar[str] = "three wells"
    depth: float | None = None
    steepness: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.depth is not None and not (is_real(self.depth) and math.isfinite(self.depth)):
            raise ProbqError(f"ThreeWells(depth=...) takes a number of nats or None (learned), not {self.depth!r}")
        if not (is_real(self.steepness) and 0 <= self.steepness < math.inf):
            raise ProbqError(f"ThreeWells(steepness=...) takes a number of nats, 0 or more, not {self.steepness!r}")
        if not (is_real(self.power) and 0 < self.power < math.inf):
            raise ProbqError(f"ThreeWells(power=...) takes a power above 0, not {self.power!r}")

    def tensors(self, weight: Tensor, ladder: Ladder) -> dict[str, Tensor]:
        """Return the depth, where it is learned."""
        return {"logits": nn.Parameter(torch.zeros(()))} if self.depth is None else {}

    def law(self, on: OnRung) -> UniformCodes:
        """Return the law of the codes on a rung."""
        depth = on.own["logits"] if self.depth is None else self.depth

        def energy(levels: Tensor) -> Tensor:
            size = levels.abs()
            size = size / size.max().clamp_min(torch.finfo(size.dtype).tiny)
            return self.steepness * torch.minimum(size, 1 - size) ** self.power - depth * (size < 0.5)

        return EnergyCodes(on.shape, on.levels, energy, on.device)

    def check(self, ladder: Ladder) -> None:
        """Raise unless the depth makes a difference on some rung."""
        for rung in ladder.rungs:
            size = rung.levels().abs()
            inside = size < size.max() / 2
            if inside.any() and not inside.all():
                return
        raise ProbqError(
            f"ThreeWells has no effect on codebooks of {', '.join(map(str, ladder.bits))} bits: none has levels "
            "both around 0 and far from it; give e.g. weight=probq.codebooks.ladder(1, 2), or leave code_prior out"
        )
