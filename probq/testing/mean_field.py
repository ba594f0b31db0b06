"""Coordinate ascent finds the best mean-field posterior of a small network on its enumerated joint law.

A posterior `q(widths) prod_i q(code_i | its width)` has one probability vector `[B]` for each quantizer and, for each
weight quantizer, one matrix `[weights, K]` for each rung. All of it is float64 torch, so that autograd gives the exact
gradient of the evidence lower bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import code_indices
from probq.decisions.assignment import Assignment
from probq.network.program.program import Program
from probq.network.quantizers.base import Rung
from probq.testing.oracles import MOST_STATES, book_levels, book_scales, decided_copy
from probq.utils.structures.tensors import arguments, call, map_tensors

Widths = list[Tensor]
Codes = list[list[Tensor]]


@dataclass(frozen=True)
class Joint:
    """A joint law has `log p(y | widths, codes)` of every state, and the logarithms of the priors.

    Attributes:
        owners: for each axis of the tables, that is each weight, the number of its quantizer.
        outputs: the network's output by rungs, `[K_1, .., K_n, batch, ..]`.
        tables: log-likelihood by rungs, `[K_1, .., K_n]`, in nats.
        log_widths: the log-prior of every quantizer's rungs `[B]`.
        log_codes: the log-prior of the codes of every weight quantizer and rung, `[weights, K]`.
    """

    owners: tuple[int, ...]
    outputs: Mapping[tuple[int, ...], Tensor]
    tables: Mapping[tuple[int, ...], Tensor]
    log_widths: Widths
    log_codes: Codes

    def given(self, q: Program, y: Tensor) -> Joint:
        """Return the same network and inputs with other targets."""
        return replace(self, tables={rungs: _log_likelihood(q, out, y) for rungs, out in self.outputs.items()})

    def axes(self, rungs: Sequence[int], codes: Codes) -> list[Tensor]:
        """Return the code probabilities of each weight at given rungs."""
        position = {owner: itertools.count() for owner in set(self.owners)}
        return [codes[owner][rungs[owner]][next(position[owner])] for owner in self.owners]

    def divergence(self, owner: int, rung: int, codes: Codes) -> Tensor:
        """Return `KL` of all codes of a quantizer on a rung, in nats."""
        p = codes[owner][rung]
        return (torch.special.xlogy(p, p) - p * self.log_codes[owner][rung]).sum()

    def elbo(self, widths: Widths, codes: Codes) -> Tensor:
        """Return the evidence lower bound in nats."""
        total = torch.zeros((), dtype=torch.float64)
        for rungs, table in self.tables.items():
            probability = math.prod(
                (widths[u][k] for u, k in enumerate(rungs)), start=torch.ones((), dtype=torch.float64)
            )
            total = total + probability * contracted(table, self.axes(rungs, codes))
        for u, p in enumerate(widths):
            total = total - (torch.special.xlogy(p, p) - p * self.log_widths[u]).sum()
            for k in range(len(codes[u])):
                total = total - p[k] * self.divergence(u, k, codes)
        return total

    def log_evidence(self) -> dict[tuple[int, ...], float]:
        """Return `log p(y, widths)`, codes summed out, in nats."""
        result = {}
        for rungs, table in self.tables.items():
            log_joint = table
            for axis, log_prior in enumerate(self.axes(rungs, self.log_codes)):
                log_joint = log_joint + log_prior.reshape(-1, *[1] * (table.dim() - axis - 1))
            prior = sum(float(self.log_widths[u][k]) for u, k in enumerate(rungs))
            result[rungs] = float(torch.logsumexp(log_joint.reshape(-1), 0)) + prior
        return result

    def exact_widths(self) -> dict[tuple[int, ...], float]:
        """Return the true posterior probability of all widths together."""
        log_evidence = self.log_evidence()
        values = np.array(list(log_evidence.values()))
        probs = np.exp(values - values.max())
        return dict(zip(log_evidence, (probs / probs.sum()).tolist(), strict=True))


@dataclass(frozen=True)
class MeanField:
    """This is a mean-field posterior, and its evidence lower bound in nats."""

    widths: Widths
    codes: Codes
    elbo: float


def contracted(table: Tensor, axes: Sequence[Tensor], keep: int | None = None) -> Tensor:
    """Return the expectation of a table over all axes but `keep`."""
    for axis in reversed(range(len(axes))):
        if axis != keep:
            table = torch.tensordot(table, axes[axis], dims=([axis], [0]))
    return table


def enumerate_joint(q: Program, x: Any, y: Tensor) -> Joint:
    """Enumerate every width and every code of a small network whose gates are shared by tensors."""
    names = [name for name, _ in q.named_quantizers()]
    quantizers = [quantizer for _, quantizer in q.named_quantizers()]
    owners = tuple(u for u, n in enumerate(names) if n in q.weights for _ in range(q.net.get_parameter(n).numel()))
    outputs = {
        rungs: _outputs(q, dict(zip(names, rungs, strict=True)), x)
        for rungs in itertools.product(*(range(len(quantizer.ladder)) for quantizer in quantizers))
    }
    log_widths = [quantizer.prior().log_probs.detach().double() for quantizer in quantizers]
    log_codes = [
        [_log_prior(q, name, k) for k in range(len(q.quantizer(name).ladder))] if name in q.weights else []
        for name in names
    ]
    return Joint(owners, outputs, {}, log_widths, log_codes).given(q, y)


@torch.no_grad()
def _outputs(q: Program, rungs: Mapping[str, int], x: Any) -> Tensor:
    """Return the output for every code of every weight, from a plain float64 copy of the network."""
    widths = {n: quantizer.ladder.bits[rungs[n]] for n, quantizer in q.named_quantizers()}
    zeros = {n: np.zeros(q.net.get_parameter(n).shape, dtype=int) for n in q.weights}
    net = decided_copy(q, Assignment(widths, zeros, q.layers))
    values = {n: torch.from_numpy(book_levels(w, rungs[n])) for n, w in q.weights.items()}
    scales = {n: torch.from_numpy(np.asarray(book_scales(w)[rungs[n]])) for n, w in q.weights.items()}
    sizes = [(n, len(values[n])) for n in q.weights for _ in range(net.get_parameter(n).numel())]
    if math.prod(size for _, size in sizes) > MOST_STATES:
        raise ValueError("too many codes to enumerate; use a smaller network")
    ends = np.cumsum([net.get_parameter(n).numel() for n in q.weights])[:-1]
    args = map_tensors(lambda a: a.double() if a.is_floating_point() else a, arguments(x))
    results = []
    for state in itertools.product(*(range(size) for _, size in sizes)):
        for n, part in zip(q.weights, np.split(np.array(state), ends), strict=True):
            weight = net.get_parameter(n)
            weight.copy_(values[n][torch.from_numpy(part)].reshape(weight.shape) * scales[n])
        results.append(call(net, args))
    return torch.stack(results).reshape(*(size for _, size in sizes), *results[0].shape)


@torch.no_grad()
def _log_likelihood(q: Program, outputs: Tensor, y: Tensor) -> Tensor:
    """Return the log-likelihood of every state, from outputs `[K_1, .., K_n, batch, ..]`."""
    states = outputs.shape[: sum(q.net.get_parameter(n).numel() for n in q.weights)]
    flat = outputs.reshape(-1, *outputs.shape[len(states) + 1 :])
    law = q.law(flat, y)
    targets = y.repeat(states.numel(), *[1] * (y.dim() - 1)).reshape(law.batch_shape)
    return law.log_prob(targets).double().reshape(states.numel(), -1).sum(-1).reshape(states)


def _log_prior(q: Program, name: str, k: int) -> Tensor:
    """Return the log-prior of every code on a rung `[weights, K]`, by the program's own prior."""
    quantizer = q.weights[name]
    levels = torch.from_numpy(book_levels(quantizer, k)).to(torch.get_default_dtype())
    if quantizer.code_prior_law is None:
        return torch.full((math.prod(quantizer.shape), len(levels)), -math.log(len(levels)), dtype=torch.float64)
    location = q.location(name)
    onehot = torch.nn.functional.one_hot(torch.tensor(k), len(quantizer.ladder)).to(location)
    prior: Any = quantizer.code_prior(Rung(quantizer.levels(k), quantizer.scales()[k], k), onehot, location)
    return prior.log_probs(levels.expand(*quantizer.shape, -1)).detach().double().reshape(-1, len(levels))


def posterior_of(q: Program) -> tuple[Widths, Codes]:
    """Return the network's own posterior over widths and codes, with gradients to its parameters."""
    widths = [quantizer.probs().double() for _, quantizer in q.named_quantizers()]
    codes: Codes = []
    for name, quantizer in q.named_quantizers():
        codes.append([])
        for k, book in enumerate(quantizer.ladder.rungs if name in q.weights else ()):
            rung = Rung(quantizer.levels(k), quantizer.scales()[k], k)
            levels, log_probs = q.weights[name].law(q.location(name), rung).window()
            index = code_indices(rung.levels, levels.reshape(-1, levels.shape[-1])).clamp_max(book.count - 1)
            empty = torch.zeros(len(index), book.count, dtype=torch.float64)
            codes[-1].append(empty.scatter_add(1, index, log_probs.exp().double().reshape(index.shape)))
    return widths, codes


def best_mean_fields(joint: Joint, restarts: int = 20, seed: int = 0, tolerance: float = 1e-5) -> list[MeanField]:
    """Return all ends of coordinate ascent from random starts whose evidence lower bound is the highest, in nats.

    Networks with symmetries have several: where the signs of a hidden unit's weights can be flipped without any change
    of the output, so can those of a posterior.
    """
    generator = np.random.default_rng(seed)
    found = [_ascent(joint, *_start(joint, generator)) for _ in range(restarts)]
    highest = max(field.elbo for field in found)
    return [field for field in found if field.elbo >= highest - tolerance]


def best_mean_field(joint: Joint, restarts: int = 20, seed: int = 0) -> MeanField:
    """Return the mean-field posterior of the highest evidence lower bound found from random starts."""
    return max(best_mean_fields(joint, restarts, seed), key=lambda field: field.elbo)


def distance(widths: Widths, codes: Codes, fields: Sequence[MeanField]) -> tuple[float, float]:
    """Return the largest distances of the marginals of rungs and of pairs (rung, code) from the nearest posterior."""
    here = marginals(widths, codes)
    gaps = [
        tuple(float((a - b).abs().max()) for a, b in zip(here, marginals(field.widths, field.codes), strict=True))
        for field in fields
    ]
    widest, pairs = min(gaps, key=max)
    return widest, pairs


def marginals(widths: Widths, codes: Codes) -> tuple[Tensor, Tensor]:
    """Return the probabilities of all rungs, and of all pairs of a rung and a code, as two vectors."""
    pairs = [(p[k] * law).reshape(-1) for p, of in zip(widths, codes, strict=True) for k, law in enumerate(of)]
    return torch.cat([p.reshape(-1) for p in widths]), torch.cat(pairs)


def _start(joint: Joint, generator: np.random.Generator) -> tuple[Widths, Codes]:
    widths = [torch.from_numpy(generator.dirichlet(np.ones(len(p)))) for p in joint.log_widths]
    codes = [
        [torch.from_numpy(generator.dirichlet(np.ones(p.shape[1]), p.shape[0])) for p in of] for of in joint.log_codes
    ]
    return widths, codes


@torch.no_grad()
def _ascent(joint: Joint, widths: Widths, codes: Codes, tolerance: float = 1e-9) -> MeanField:
    last = -math.inf
    for _ in range(1000):
        for u in range(len(widths)):
            for axis, row in _rows(joint, u):
                for k in range(len(widths[u])):
                    scores = _expected(joint, widths, codes, u, k, axis)
                    codes[u][k][row] = torch.softmax(joint.log_codes[u][k][row] + scores, 0)
            scores = torch.stack([_expected(joint, widths, codes, u, k, None) for k in range(len(widths[u]))])
            spent = [joint.divergence(u, k, codes) if codes[u] else torch.zeros(()) for k in range(len(widths[u]))]
            widths[u] = torch.softmax(joint.log_widths[u] + scores - torch.stack(spent), 0)
        elbo = float(joint.elbo(widths, codes))
        if elbo - last < tolerance:
            break
        last = elbo
    return MeanField(widths, codes, elbo)


def _rows(joint: Joint, owner: int) -> Iterator[tuple[int, int]]:
    """Return the axes of a quantizer's weights, and the row of each."""
    axes = [axis for axis, other in enumerate(joint.owners) if other == owner]
    return zip(axes, range(len(axes)), strict=True)


def _expected(joint: Joint, widths: Widths, codes: Codes, owner: int, rung: int, keep: int | None) -> Tensor:
    """Return the expected log-likelihood given a quantizer's rung, and, along `keep`, given one weight's code."""
    total = torch.zeros((), dtype=torch.float64)
    for rungs, table in joint.tables.items():
        if rungs[owner] == rung:
            others = math.prod(float(widths[u][k]) for u, k in enumerate(rungs) if u != owner)
            total = total + others * contracted(table, joint.axes(rungs, codes), keep)
    return total
