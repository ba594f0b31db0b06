"""The alternating direction method of multipliers (ADMM) trains real weights that are pulled towards codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probq.network.distributions.observation import Observation
from probq.network.program.substitution import running
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import rounder
from probq.training.preparation import prepare
from probq.training.weight_updates.closed_forms import ROUNDS
from probq.training.weight_updates.quantizers import copied, set_scale
from probq.utils.arguments import check_number, is_real
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError


class ADMM:
    """This is the method for `min L(W)` where each `W` lies in a set, by turns:

        W <- argmin L(W) + rho/2 ||W - G + U||^2,    G <- project(W + U),    U <- U + W - G.

    The first turn is for the user's optimizer, with `penalty()` added to the loss.

    Args:
        weights: the `W` by name, in place.
        project: from a name and a tensor to the nearest one in its set.
        rho: strength of the penalty, above 0.

    Raises:
        ProbqError: if `rho` is not above 0.

    Source: C. Leng, Z. Dou, H. Li, S. Zhu, R. Jin, 2018, "Extremely Low Bit Neural Network: Squeeze the Last Bit Out
    with ADMM".

    Example: the nearest whole number to 2.2 that a parabola allows.

        >>> w = torch.zeros(1, requires_grad=True)
        >>> turns = ADMM({"w": w}, lambda name, tensor: tensor.round(), rho=1.0)
        >>> for _ in range(20):
        ...     w.data = (2.2 + turns.copies["w"] - turns.duals["w"]) / 2  # argmin of (w - 2.2)^2 / 2 + penalty
        ...     turns.update()
        >>> turns.copies["w"]
        tensor([2.])
    """

    def __init__(
        self, weights: Mapping[str, Tensor], project: Callable[[str, Tensor], Tensor], rho: float = 0.1
    ) -> None:
        if not (is_real(rho) and 0 < rho < math.inf):
            raise ProbqError(
                f"rho must be a number above 0, not {rho!r}: without a penalty weights know nothing of codes"
            )
        self.weights, self.project, self.rho = weights, project, rho
        self.duals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.copies = {name: project(name, weight.detach().clone()) for name, weight in weights.items()}

    def penalty(self) -> Tensor:
        """Return `rho/2 sum ||W - G + U||^2`."""
        parts = [(w - self.copies[n] + self.duals[n]).square().sum() for n, w in self.weights.items()]
        return self.rho / 2 * torch.stack(parts).sum()

    @torch.no_grad()
    def update(self) -> None:
        """Take the second and third turn."""
        for name, weight in self.weights.items():
            self.copies[name] = self.project(name, weight + self.duals[name])
            self.duals[name] += weight - self.copies[name]

    @torch.no_grad()
    def residual(self) -> float:
        """Return `||W - G||`."""
        parts = [(w - self.copies[n]).square().sum() for n, w in self.weights.items()]
        return float(torch.stack(parts).sum().sqrt())


def admm(
    q: Quantized,
    batches: Iterable[Any],
    epochs: int = 1,
    *,
    rho: float = 0.1,
    rate: float = 1e-3,
    every: int | None = None,
    progress: bool = True,
) -> Quantized:
    """Return the network at its fixed widths, its weights trained by ADMM and left at codes.

    The loss is the mean negative log-likelihood of the network with real weights, inputs rounded; scales of codes are
    fitted in each projection. Straight-through tuning by `fit` may follow.

    Args:
        q: a network whose widths are fixed.
        batches: iterable of `(input, target)`.
        epochs: number of passes.
        rho: strength of the penalty in nats for each squared unit of a weight, above 0.
        rate: learning rate of Adam.
        every: steps between projections; by default those of a tenth of all.
        progress: show a progress bar.

    Raises:
        ProbqError: if a width is not fixed, a number is out of range, all weights are frozen, or the loss is not
            finite.

    Source: as `ADMM`.

    Example:
        >>> import probq
        >>> batch = torch.rand(8, 4), torch.arange(8) % 2
        >>> q = probq.quantize(torch.nn.Sequential(torch.nn.Linear(4, 2)), batch[0], probq.uniform(2, 4))
        >>> tuned = admm(q, [batch], epochs=10, progress=False)
    """
    check_number("epochs", epochs, 1)
    if every is not None:
        check_number("every", every, 1)
    if not (is_real(rate) and 0 < rate < math.inf):
        raise ProbqError(f"rate is a learning rate above 0, not {rate!r}")
    result, data = copied(q, "admm"), Batches(batches, q.device)
    weights = {name: result.net.get_parameter(name) for name in result.weights}
    if not any(weight.requires_grad for weight in weights.values()):
        raise ProbqError("admm trains weights, and those of this network are frozen; call q.net.requires_grad_(True)")

    def project(name: str, tensor: Tensor) -> Tensor:
        quantizer = result.weights[name]
        set_scale(quantizer, tensor, torch.ones_like(tensor), ROUNDS)
        rung = quantizer.rung(quantizer.probs().argmax(-1))
        return (quantizer.law(tensor, rung, nearest=1).mode * rung.scale).detach()

    prepare(result, data, None, result.temperature)
    turns, total = ADMM(weights, project, rho), epochs * len(data)
    optimizer = torch.optim.Adam([p for p in result.net.parameters() if p.requires_grad], rate)
    between = every or max(1, total // 10)
    result.train()
    steps = tqdm((batch for _ in range(epochs) for batch in data), "admm", total, disable=not progress, unit="step")
    for number, (x, y) in enumerate(steps):
        optimizer.zero_grad()
        loss = _loss(result, x, y) + turns.penalty()
        if not torch.isfinite(loss):
            raise ProbqError(f"the loss became {float(loss)} at step {number} of admm; lower the rate")
        loss.backward()
        optimizer.step()
        if (number + 1) % between == 0:
            turns.update()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(project(name, weight + turns.duals[name]))
    return result.eval()


def _loss(q: Quantized, x: Any, y: Tensor) -> Tensor:
    """Return the mean negative log-likelihood with real weights and rounded inputs."""
    onehots = {name: quantizer.probs() for name, quantizer in q.named_quantizers()}
    rungs = {name: q.rung(name, onehots[name]) for name in q.weights}
    weights = {name: q.location(name, rungs[name]) for name in q.weights}
    rungs |= {name: quantizer.rung(onehots[name].argmax(-1)) for name, quantizer in q.inputs.items()}
    rounders = {name: rounder(quantizer, onehots[name], False, False) for name, quantizer in q.inputs.items()}
    with running(x):
        output = q.call(weights, rungs, rounders, x)
    return -Observation(q.law(output, y)).log_prob(y).mean()
