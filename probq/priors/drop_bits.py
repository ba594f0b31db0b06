"""The prior of dropped bits lets each layer learn how probable it is that a code does without its lowest bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from probq.codebooks import Ladder
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.distributions.widths import Widths
from probq.priors.bit_planes import check_planes, planes_of
from probq.priors.code_prior import CodePrior, OnRung
from probq.priors.energy_codes import EnergyCodes
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class DropBits(CodePrior):
    """This prior takes the lowest bits off each code at random, by a chain of gates like that of widths:

        P(l) = sum_m P(m planes are kept) [2^(J - m) divides l] / K_m,

    where `J` is the number of bit planes of the codebook and `K_m` that of its levels on the coarser grid. The gates'
    probabilities are learned for each weight tensor by the bound: a layer whose codes seldom need their low bits comes
    to drop them, which makes coarse levels more probable still. `probq.drop_planes` then narrows what has no low bits
    any more. Gates of widths choose between grids of different scales for a whole tensor at once; this law is one for
    each weight, on one grid.

    Raises:
        ProbqError: later, if levels are no whole numbers, or no codebook has a coarser grid in it.

    Source: J. H. Lee, J. Yun, S. J. Hwang, E. Yang, 2021, "Cluster-Promoting Quantization with Bit-Drop for Minimizing
    Network Quantization Loss" (bits dropped during training with a learned probability; here the law before data).

    Example:
        >>> from probq.codebooks import uniform
        >>> on = OnRung(torch.Size([1]), uniform(3), torch.tensor(1.0), {"logits": torch.tensor([0.0, 0.0])})
        >>> DropBits().law(on).log_probs(torch.tensor([2.0])).exp()  # 1/4 of one in {-2, 0, 2}, 1/4 of one in all seven
        tensor([0.1190])
    """

    kind: ClassVar[str] = "dropped bits"

    def tensors(self, weight: Tensor, ladder: Ladder) -> dict[str, Tensor]:
        """Return the log-odds that the highest plane is kept, that the next one is kept too, and so on."""
        planes = max(planes_of(rung.levels()).shape[1] for rung in ladder.rungs)
        return {"logits": nn.Parameter(torch.zeros(planes))}

    def law(self, on: OnRung) -> UniformCodes:
        """Return the law of the codes on a rung."""

        def energy(levels: Tensor) -> Tensor:
            coarse = _on_grids(levels).to(levels)
            kept = Widths(on.own["logits"][: coarse.shape[1] - 1], validate_args=False).probs
            return -(coarse / coarse.sum(0).clamp_min(1) @ kept).log()

        return EnergyCodes(on.shape, on.levels, energy, on.device)

    def check(self, ladder: Ladder) -> None:
        """Raise unless dropped bits make a difference on some rung."""
        check_planes(self, ladder)
        sizes = [_on_grids(rung.levels()).sum(0) for rung in ladder.rungs]
        if not any(size[size > 0].unique().numel() > 1 for size in sizes):
            raise ProbqError(
                f"DropBits has no effect on codebooks of {', '.join(map(str, ladder.bits))} bits, which have no "
                "coarser grid in them; give wider ones, or leave code_prior out"
            )


def _on_grids(levels: Tensor) -> Tensor:
    """Return whether each level is on the grid of the highest `0 .. J` planes alone, `[K, J + 1]`."""
    bits = planes_of(levels)
    lower = bits.flip(1).cumsum(1).flip(1)  # how many bits are set in each plane and below
    none = torch.zeros(len(levels), 1, dtype=lower.dtype, device=levels.device)
    return torch.cat([lower, none], 1) == 0
