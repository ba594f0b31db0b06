"""An estimator says how the draw of a code enters the forward pass of training, and what its gradient is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from probq.network.distributions.codes import Codes
from probq.network.distributions.widths import Widths

# From a layer's module and its input to what is added to the module's output.
Noise: TypeAlias = Callable[[Any, Tensor], Tensor]

# From the scale and the law of any rung to a number for each weight there.
OfRung: TypeAlias = Callable[[Tensor, Codes], Tensor]

# From such a number on the drawn rung, and how it follows on any, to the same with the gates' gradient.
Through: TypeAlias = Callable[[Tensor, OfRung], Tensor]


@dataclass(frozen=True)
class Estimator:
    """An estimator gives the gradient of `E_q[log p(y | x)]`; the law of the codes and its KL are the same for all.

    It acts while a network is in training mode and widths are still searched. Decisions and predictions always use
    hard draws of the law, or its mode.

    Attributes:
        noisy: whether layers get the mean weight and `noise` in place of one drawn weight.
        exact_gates: whether the gates are told the mean weight of every rung, instead of the nearest levels.
    """

    noisy: ClassVar[bool] = False
    exact_gates: ClassVar[bool] = False

    def draw(self, law: Codes) -> Tensor:
        """Return levels of the weights, the value of the code's site; their gradient is the estimator's."""
        raise NotImplementedError

    def noise(self, law: Codes, levels: Tensor, through: Through) -> Noise:
        """Return what a layer that runs on the mean weight adds to its output; for noisy estimators.

        Args:
            law: the law of the codes.
            levels: drawn from it.
            through: gives a number for each weight the gates' gradient.
        """
        raise NotImplementedError

    def widths(self, logits: Tensor) -> Widths:
        """Return the law of the width, whose draws have the estimator's gradient."""
        return Widths(logits)


def remember(levels: Tensor, law: Codes) -> Tensor:
    """Return the same levels, with the law that they were drawn from: the model's forward pass needs it."""
    levels.law = law  # type: ignore[attr-defined]
    return levels


def drawn_law(levels: Tensor) -> Codes | None:
    """Return the law that a noisy estimator drew these very levels from, else None."""
    return getattr(levels, "law", None)


def on_weight(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Return the output of a layer without its bias, on another weight; no hooks run."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = {"weight": weight, "bias": None}
    return type(module).forward(twin, x)


def hard_draw(law: Codes) -> Tensor:
    """Draw levels from a law, without gradient."""
    return law.draw().detach()
