"""The prior of bit planes has a price for each set bit of a layer's codes, which each plane of the layer learns."""

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
class BitPlanes(CodePrior):
    """This prior has a charge for each bit of a level's magnitude, `|l| = sum_j 2^(J-j) bit_j(l)`, plane 1 the highest.

        P(l) proportional to exp(-sum_j charge_j bit_j(l)),

    with sum 1 over all levels of the codebook exactly. A learned charge rises where few of a layer's `N` weights have
    the bit. With `n` of them and independent planes the bound is then charged `N h(n / N)` nats for a plane, `h` the
    entropy of a bit: steepest at `n = 0` and concave, as the group lasso over planes is, so that planes empty one by
    one. `probq.drop_planes` then takes the widths down to the planes that are left.

    Attributes:
        charge: of a set bit in nats, the same for all planes; None: one for each plane of each weight tensor is learned
            (a parameter `prior_logits` of its quantizer), starting at 0, where all levels are equally probable.

    Raises:
        ProbqError: if the charge is not finite; later, if levels are no whole numbers, or no charge could tell any two
            of them apart.

    Source: H. Yang, L. Duan, Y. Chen, H. Li, 2021, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural
    Network Quantization" (a group lasso over bit planes; here a law of codes).

    Example:
        >>> from probq.codebooks import ternary
        >>> on = OnRung(torch.Size([3]), ternary(), torch.tensor(1.0), {})
        >>> BitPlanes(charge=math.log(2)).law(on).log_probs(torch.tensor([-1.0, 0.0, 1.0])).exp()
        tensor([0.2500, 0.5000, 0.2500])
    """

    kind: ClassVar[str] = "bit planes"
    charge: float | None = None

    def __post_init__(self) -> None:
        if self.charge is not None and not (is_real(self.charge) and math.isfinite(self.charge)):
            raise ProbqError(f"BitPlanes(charge=...) takes a number of nats or None (learned), not {self.charge!r}")

    def tensors(self, weight: Tensor, ladder: Ladder) -> dict[str, Tensor]:
        """Return the charges of the planes of the widest codebook, where they are learned."""
        planes = max(planes_of(rung.levels()).shape[1] for rung in ladder.rungs)
        return {"logits": nn.Parameter(torch.zeros(planes))} if self.charge is None else {}

    def law(self, on: OnRung) -> UniformCodes:
        """Return the law of the codes on a rung."""

        def energy(levels: Tensor) -> Tensor:
            bits = planes_of(levels).to(levels)
            return self.charge * bits.sum(1) if self.charge is not None else bits @ on.own["logits"][: bits.shape[1]]

        return EnergyCodes(on.shape, on.levels, energy, on.device)

    def check(self, ladder: Ladder) -> None:
        """Raise unless charges make a difference on some rung."""
        check_planes(self, ladder)
        bits = [planes_of(rung.levels()) for rung in ladder.rungs]
        if not any((each != each[:1]).any() for each in bits):
            raise ProbqError(
                f"BitPlanes has no effect on codebooks of {', '.join(map(str, ladder.bits))} bits, whose levels have "
                "the same magnitude; give wider ones, or leave code_prior out"
            )


def planes_of(levels: Tensor) -> Tensor:
    """Return the bits of the magnitudes of whole levels `[K]`, the highest first, `[K, J]` of 0 and 1.

    Example:
        >>> planes_of(torch.tensor([-1.0, 0.0, 2.0])).tolist()
        [[0, 1], [0, 0], [1, 0]]
    """
    sizes = levels.detach().abs().round().long()
    count = int(sizes.max()).bit_length()
    return (sizes.unsqueeze(1) >> torch.arange(count - 1, -1, -1, device=levels.device)) & 1


def check_planes(prior: CodePrior, ladder: Ladder) -> None:
    """Raise unless all levels of a ladder are whole numbers, now and after training."""
    for rung in ladder.rungs:
        if not rung.whole:
            raise ProbqError(
                f"{type(prior).__name__} counts bits of whole numbers, which the levels of the codebook of {rung.bits} "
                "bits are not; use uniform, ternary or powers-of-two codebooks"
            )
