"""Loss-aware steps are Newton steps of Adam's curvature, projected to codes in the metric of that curvature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.network.quantized.quantized import Quantized
from probq.training.weight_updates.quantizers import check, set_scale
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError


class LossAware(torch.optim.Adam):
    """This optimizer is Adam that gives weights the scales of least `sum d (a b - w)^2` after each step, `d = sqrt(v)`.

    With the loss at the quantized weights, a step is `w <- w - rate m / sqrt(v)`; the weights that the next loss sees
    are the `a b` nearest to `w` in the metric of the diagonal curvature `d`: a proximal Newton method. So weights that
    the loss is flat in have less say in the scale. For binary weights `b = sign(w)`, `a = sum d |w| / sum d`; for
    ternary and wider ones `a` and `b` are found by turns, from where the last step left them.

    Args:
        groups: of parameters, as every optimizer of torch has.
        q: the network whose parameters they are, its widths fixed.
        rounds: number of turns of each step.
        options: of `torch.optim.Adam`.

    Source: L. Hou, Q. Yao, J. T. Kwok, 2017, "Loss-aware Binarization of Deep Networks"; L. Hou, J. T. Kwok, 2018,
    "Loss-aware Weight Quantization of Deep Networks".
    """

    def __init__(self, groups: Any, q: Quantized, rounds: int = 1, **options: Any) -> None:
        super().__init__(groups, **options)
        self.q, self.rounds = q, rounds

    def step(self, closure: Any = None) -> Any:
        """Take a step, and set the scales.

        Raises:
            ProbqError: if the parameters are of another network.
        """
        trained = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        if not any(id(self.q.net.get_parameter(name)) in trained for name in self.q.weights):
            raise ProbqError(
                "loss_aware was given a network none of whose weights is trained; give it the one that is fitted, "
                "whose weights are not frozen"
            )
        loss = super().step(closure)
        for name, quantizer in self.q.weights.items():
            weight = self.q.net.get_parameter(name)
            if "exp_avg_sq" in self.state.get(weight, {}):
                set_scale(quantizer, weight.detach(), self._curvature(weight), self.rounds)
        return loss

    def _curvature(self, weight: Tensor) -> Tensor:
        group = next(g for g in self.param_groups if any(p is weight for p in g["params"]))
        correction = 1 - group["betas"][1] ** float(self.state[weight]["step"])
        curvature: Tensor = (self.state[weight]["exp_avg_sq"] / correction).sqrt() + group["eps"]
        return curvature


def loss_aware(q: Quantized, rounds: int = 1, **options: Any) -> Callable[..., LossAware]:
    """Return what makes `LossAware` of parameter groups, for `fit(q, batches, optimizer=loss_aware(q))`.

    Args:
        q: the network to be fitted, its widths fixed.
        rounds: number of turns of each step.
        options: of `torch.optim.Adam`.

    Raises:
        ProbqError: if a width is not fixed, a weight has codes that do not follow from real weights, or, in the fit, it
            trains no weight of this network.

    Example:
        >>> import probq
        >>> batch = torch.rand(8, 4), torch.arange(8) % 2
        >>> q = probq.quantize(torch.nn.Sequential(torch.nn.Linear(4, 2)), batch[0], probq.uniform(1, 4))
        >>> history = probq.fit(q, [batch], epochs=2, optimizer=loss_aware(q), progress=False)
    """
    check(q, "loss_aware")
    check_number("rounds", rounds, 1)
    return partial(LossAware, q=q, rounds=rounds, **options)
