"""A prior over codes gives the levels of a rung their probabilities, and may have numbers that each weight learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probq.codebooks import Ladder
from probq.codebooks.rounding.nearest import Levels
from probq.network.distributions.uniform_codes import UniformCodes


@dataclass(frozen=True)
class OnRung:
    """This is what a prior is told of a weight, or of a part of it, on one rung.

    Attributes:
        shape: of the weight.
        levels: as in `Codes`.
        scale: the step, broadcastable to the weight.
        own: what `CodePrior.tensors` gave, as it stands.
        device: of the weight.
        gain: what a folded normalisation multiplies the weight by, or None.
    """

    shape: torch.Size
    levels: Levels
    scale: Tensor
    own: Mapping[str, Tensor]
    device: torch.device | None = None
    gain: Tensor | None = None


@dataclass(frozen=True)
class CodePrior:
    """A prior over codes is a law over the levels of a rung that knows no data.

    One of your own says its law, and what each weight learns of it.
    """

    kind: ClassVar[str] = ""

    def tensors(self, weight: Tensor, ladder: Ladder) -> dict[str, Tensor]:
        """Return what each weight has of its own, by name.

        A parameter is learned with the posterior, by the same bound; any other tensor has the shape of the weight and
        stays.

        Args:
            weight: as trained.
            ladder: its codebooks.
        """
        return {}

    def law(self, on: OnRung) -> UniformCodes:
        """Return the law of the codes on a rung."""
        raise NotImplementedError

    def check(self, ladder: Ladder) -> None:
        """Raise where the prior says nothing, or nothing that makes sense, about the codes of a ladder."""
