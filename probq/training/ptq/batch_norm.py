"""Statistics of batch normalisation are estimated anew once widths are decided."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from probq.decisions.widths import fixed_by_decision
from probq.network.program.decided_codes import decided_output
from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.module_kinds import NORMS
from probq.training.ptq.decided import decided_inputs, float_network, unrounded
from probq.utils.batches import Batches
from probq.utils.structures.tensors import arguments

NORM_BATCHES = 20


def has_norms(q: Program) -> bool:
    """Return whether the network has batch normalisation whose statistics training estimates."""
    return bool(_norms(q))


def _norms(q: Program) -> dict[str, Any]:
    named = q.net.named_modules()
    return {name: m for name, m in named if isinstance(m, NORMS) and m.track_running_stats and name not in q.held}


@torch.no_grad()
def estimate_norms(q: Program, data: Iterable[Any]) -> None:
    """Re-estimate the statistics of batch normalisation at fixed widths, as averages over 20 batches.

    Source: X. Sun et al., 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks"
    (batch-norm re-tuning after quantization).
    """
    _averages(q, data, lambda x: decided_output(q, arguments(x)))


@torch.no_grad()
def _averages(q: Program, data: Iterable[Any], run: Callable[[Any], Any]) -> None:
    norms = list(_norms(q).values())
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    calls = [norm.register_forward_pre_hook(_MeanOfCalls()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        for x, _ in islice(data, NORM_BATCHES):
            with running(x):
                run(x)
    finally:
        for call in calls:
            call.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


class _MeanOfCalls:
    """Before each call of a norm its momentum is set so that statistics are the mean of all calls.

    Several calls may be of one batch, where a norm is shared. A momentum of None says the same to torch's modules, but
    not to those that hand it on to `batch_norm` as a number.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, norm: Any, given: Any) -> None:
        self.number += 1
        norm.momentum = 1 / self.number


class FloatStatistics:
    """Statistics of batch normalisation that a float network keeps, and what a few batches give for it.

    They are moved to fixed widths by what rounding changes on these batches,

        mean <- mean + (mean~ - mean^),    variance + eps <- (variance + eps) (variance~ + eps) / (variance^ + eps),

    where ~ is of the network at these widths, and ^ of the float network. So nothing changes where rounding changes
    nothing, few examples do, and augmentation of the training images stays in the statistics.

    Args:
        q: a network with the weights and statistics of the float network.
        data: `(input, anything)` batches, of which the first 20 are used.
    """

    @torch.no_grad()
    def __init__(self, q: Program, data: Iterable[Any]) -> None:
        kept = _statistics(q)
        state = {name: buffer.clone() for name, buffer in q.net.named_buffers()}
        _averages(q, data, lambda x: substitute(q.net, {}, {}, {}, *arguments(x)))
        given = _statistics(q)
        for name, buffer in q.net.named_buffers():
            buffer.copy_(state[name])
        self._moved = {
            name: (mean - given[name][0], (variance + eps) / (given[name][1] + eps))
            for name, (mean, variance, eps) in kept.items()
        }

    @torch.no_grad()
    def estimate(self, q: Program, data: Iterable[Any]) -> None:
        """Move the statistics to the widths that are fixed, from the same batches."""
        estimate_norms(q, data)
        for name, norm in _norms(q).items():
            shift, factor = self._moved[name]
            norm.running_mean += shift
            norm.running_var.copy_(((norm.running_var + norm.eps) * factor - norm.eps).clamp_min(0))


def _statistics(q: Program) -> dict[str, tuple[Tensor, Tensor, float]]:
    return {name: (m.running_mean.clone(), m.running_var.clone(), m.eps) for name, m in _norms(q).items()}


def norms(q: Quantized, batches: Iterable[Any], *, examples: int = 512, anew: bool = False) -> Quantized:
    """Return the decided network with the statistics of batch normalisation moved to its widths, and folded again:

        mean <- mean + (mean~ - mean^),    variance + eps <- (variance + eps) (variance~ + eps) / (variance^ + eps),

    where averages over the first 20 batches are marked by ~ at the decided widths, and by ^ in the float network. So
    statistics stay what training made them, from all its examples with their augmentation, but for what rounding
    changes. Scales follow the new gain: all codes stay, also those that `gpfq` or `reconstruct` has chosen. With
    `Plan(profile="shift")` they cannot; there codes are those nearest to the float weights with the new gain, and
    biases those of the float network, so what rounds better or corrects comes afterwards. Normalisation whose
    statistics are held stays as it is.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at; each of several examples.
        examples: greatest number of examples, kept in memory.
        anew: take the averages at the decided widths alone, mean <- mean~ and variance <- variance~. This is for
            networks whose statistics are not those of their float weights, such as what `fit` has searched.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network is not decided, or there is no data.

    Source: X. Sun et al., 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks"
    (batch-norm re-tuning after quantization).

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
        >>> q = probq.quantize(net, torch.rand(8, 2), probq.uniform(4, 4))
        >>> moved = probq.ptq.norms(q.at(q.mode()), [torch.rand(64, 2)])
        >>> moved.net[1].running_var.equal(q.net[1].running_var), q.net[1].running_var.tolist()
        (False, [1.0, 1.0])
    """
    inputs = decided_inputs(q, batches, examples, "norms")
    multiplied = all(weight.multipliers > 1 for weight in q.weights.values())
    result = copy.deepcopy(q) if multiplied else unrounded(q)
    for name in _norms(q):
        result.originals.keep(result.net, f"{name}.running_mean")
        result.originals.keep(result.net, f"{name}.running_var")
    result.folded = False
    result.eval()  # the statistics of what ships: without dropout
    data = [(x, None) for x in inputs]
    if anew:
        estimate_norms(result, data)
    else:
        FloatStatistics(float_network(q).eval(), data).estimate(result, data)
    result.folded = q.folded
    result.train(q.training)
    return result


def estimate_before_use(q: Program, data: Batches) -> None:
    """Re-estimate normalisation that follows the batches at decided widths; its running averages lag behind."""
    if fixed_by_decision(q) and not q.folded and has_norms(q):
        q.eval()  # the statistics of what ships: without dropout
        estimate_norms(q, data)
        q.train()
