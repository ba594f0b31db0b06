"""Many draws give an unbiased gradient of the posterior over widths and codes, for small networks and for checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.network.distributions.observation import Observation
from probq.network.program.program import Program
from probq.network.program.vectorized import vectorized_outputs
from probq.network.program.width_prior import pair_energy
from probq.priors import PriorCodes
from probq.training.distillation.lessons import Lesson
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments


def leave_one_out(
    q: Program, x: Any, y: Tensor, size: int | None = None, draws: int = 64, lesson: Lesson | None = None
) -> Tensor:
    """Return the negative evidence lower bound in nats.

    Its gradient is the score function's, with the draws' mean as baseline.

    With draws `z_1 .. z_S` of all widths and codes and `f_s = log q(z_s) - log p(y, z_s)`,

        dL/dtheta = 1 / (S - 1) sum_s (f_s - mean f) dlog q(z_s)/dtheta.

    No derivative of the network enters, so none of the estimators' biases is left: neither the curvature of the loss
    (`SecondOrder` follows it to second order) nor the straight-through derivative of a rounded input. Its variance goes
    to zero where the posterior can be matched, and grows with the number of weights otherwise: it is for networks of a
    few dozen. It moves the laws of widths and codes alone; scales and biases stay. The plan's estimator plays no part.

    Args:
        q: the network; what it computes is what ships, as in `Quantized.outputs`.
        x: a batch of inputs, or a tuple of the network's arguments.
        y: targets.
        size: number of examples in the data set, by default that of the batch.
        draws: number `S` of draws, 2 or more.
        lesson: what a teacher of `fit` says to the batch.

    Raises:
        ProbqError: if there are fewer than two draws.

    Source: L. Richter, A. Boustati, N. Nuesken, F. Ruiz, O. D. Akyildiz, 2020, "VarGrad: A Low-Variance Gradient
    Estimator for Variational Inference"; W. Kool, H. van Hoof, M. Welling, 2019, "Buy 4 REINFORCE Samples, Get a
    Baseline for Free!".

    Example:
        >>> import probq
        >>> x, y = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
        >>> q = probq.quantize(torch.nn.Linear(3, 2), x)
        >>> leave_one_out(q, x, y, draws=4).backward()
    """
    if type(draws) is not int or draws < 2:
        raise ProbqError(f"leave_one_out(draws=...) takes a number of draws, 2 or more, not {draws!r}")
    rungs, score, prior = _drawn_widths(q, draws)
    losses, scores = [], []
    for rows in _groups(rungs, draws):
        onehots = {n: F.one_hot(k[rows[0]], len(q.quantizer(n).ladder)).to(score) for n, k in rungs.items()}
        levels, log_q, log_p = _drawn_codes(q, onehots, len(rows))
        found = _log_probs(q, onehots, levels, x, y, lesson)
        likelihood = torch.stack([each.sum() * ((size or len(each)) / len(each)) for each in found])
        scores.append(score[rows] + log_q)
        losses.append(q.temperature * (scores[-1].detach() - prior[rows] - log_p) - likelihood)
    loss, log_prob = torch.cat(losses), torch.cat(scores)
    excess = (loss - loss.mean()).detach() * (draws / (draws - 1))
    return loss.mean() + (excess * (log_prob - log_prob.detach())).mean()


def law_parameters(q: Program) -> list[nn.Parameter]:
    """Return the parameters of the laws that `leave_one_out` draws from.

    They are gates, locations, spreads, and logits of free laws.

    What is rounded instead of drawn has none.
    """
    found = [quantizer.logits for _, quantizer in q.named_sites() if quantizer.free]
    for name, quantizer in q.weights.items():
        if quantizer.nearest > 1 and not q.rounding:
            own = [*quantizer.code_logits.values()] if quantizer.free_codes else [q.net.get_parameter(name)]
            found += [quantizer.log_spread, *own]
    return [parameter for parameter in found if parameter.requires_grad]


def _drawn_widths(q: Program, draws: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the rungs of every quantizer `[draws, *gates]`, and their log-probability and log-prior `[draws]`."""
    rungs: dict[str, Tensor] = {}
    score = prior = torch.zeros(draws, device=q.device)
    for name, quantizer in q.named_quantizers():
        if name in q.sites:
            rungs[name] = rungs[q.sites[name]]
        elif not quantizer.free:
            rungs[name] = quantizer.probs().argmax(-1).expand(draws, *quantizer.gates)
        else:
            log_q, log_p = quantizer.widths().log_probs, quantizer.prior().log_probs
            flat = log_q.detach().exp().reshape(-1, log_q.shape[-1])
            index = torch.multinomial(flat, draws, replacement=True)  # [gates, draws]
            score = score + log_q.reshape(flat.shape).gather(1, index).sum(0)
            prior = prior + log_p.reshape(flat.shape).gather(1, index).sum(0)
            rungs[name] = index.T.reshape(draws, *quantizer.gates)
    if q.pairs is not None:
        prior = prior - _pair_energies(q, rungs, draws).to(prior)
    return rungs, score, prior


def _pair_energies(q: Program, rungs: Mapping[str, Tensor], draws: int) -> Tensor:
    """Return the energy of pairs of widths of each draw, `[draws]`."""
    onehots = {name: F.one_hot(k, len(q.quantizer(name).ladder)).double() for name, k in rungs.items()}
    return torch.stack([pair_energy(q, {name: row[s] for name, row in onehots.items()}) for s in range(draws)])


def _groups(rungs: Mapping[str, Tensor], draws: int) -> list[list[int]]:
    """Return draws that have all rungs in common."""
    found: dict[bytes, list[int]] = {}
    stacked = torch.cat([k.reshape(draws, -1) for k in rungs.values()], 1).cpu().numpy()
    for row in range(draws):
        found.setdefault(stacked[row].tobytes(), []).append(row)
    return list(found.values())


def _drawn_codes(q: Program, onehots: Mapping[str, Tensor], draws: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the levels of every weight `[draws, *shape]`, and their log-probability and log-prior `[draws]`."""
    levels: dict[str, Tensor] = {}
    score = prior = torch.zeros(draws, device=q.device)
    for name, quantizer in q.weights.items():
        rung = q.rung(name, onehots[name])
        law = quantizer.law(q.location(name, rung), rung)
        if quantizer.nearest == 1 or q.rounding:
            levels[name] = law.mode.detach().expand(draws, *quantizer.shape)
            continue
        values, log_q = (tensor.flatten(end_dim=-2) for tensor in law.window())
        index = torch.multinomial(log_q.detach().exp(), draws, replacement=True)  # [codes, draws]
        each = values.reshape(len(log_q), -1, values.shape[-1])  # [codes, weights of a code, nearest]
        drawn = torch.take_along_dim(each, index.unsqueeze(1), 2)
        levels[name] = drawn.permute(2, 0, 1).reshape(draws, *quantizer.shape)
        score = score + log_q.gather(1, index).sum(0)
        of_codes: Any = q.code_prior(name, rung, onehots[name])
        if isinstance(of_codes, PriorCodes):
            prior = prior + of_codes.log_probs(law.window()[0]).reshape(values.shape).gather(1, index).sum(0)
        else:
            prior = prior - of_codes.log_count()
    return levels, score, prior


@torch.no_grad()
def _log_probs(
    q: Program, onehots: Mapping[str, Tensor], levels: Mapping[str, Tensor], x: Any, y: Tensor, lesson: Lesson | None
) -> list[Tensor]:
    """Return what the data says of each example, `[batch]` for each draw of networks of the same widths."""
    count = len(next(iter(levels.values())))
    outputs: Any = vectorized_outputs(q, onehots, levels, arguments(x))
    if outputs is None:
        rows = [{n: value[k] for n, value in levels.items()} for k in range(count)]
        with q.evaluating():
            outputs = [q.run(onehots, row, arguments(x), exact=True) for row in rows]
    laws = [q.law(outputs[k], y) for k in range(count)]
    found = [Observation(law).log_prob(y) for law in laws]
    if lesson is not None:
        found = [-lesson.mixed(-each, lesson.divergence(law, y)) for each, law in zip(found, laws, strict=True)]
    return found
