"""These oracles enumerate: plain float64 from the definitions, with no arithmetic shared with what they check."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq.codebooks import Codebook, Grid, Table
from probq.decisions.assignment import Assignment
from probq.network.program.program import Program
from probq.network.quantizers.base import FINEST_LEVEL, Quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.layer import Layer
from probq.testing.step_oracle import with_steps
from probq.utils.structures.tensors import arguments, call, map_tensors

MOST_STATES = 100_000


def book_levels(quantizer: Quantizer, rung: int) -> np.ndarray:
    """Return the levels of one rung `[K]` in float64; learned ones rounded to multiples of 1/16."""
    book: Codebook = quantizer.ladder.rungs[rung]
    if isinstance(book, Grid):
        return np.arange(book.count) * float(book.step) + book.start
    if isinstance(book, Table) and not book.learned:
        return np.array(book.values)
    return np.round(np.sort(_numbers(quantizer.tables[str(rung)])) / FINEST_LEVEL) * FINEST_LEVEL


def book_scales(quantizer: Quantizer) -> np.ndarray:
    """Return the scale of every rung in float64: powers of two, or multiples 16 .. 31 of one."""
    logarithms, multipliers = _numbers(quantizer.log2_scale), quantizer.multipliers
    if multipliers == 1:
        return 2.0 ** np.round(logarithms)
    unit = 2.0 ** np.floor(logarithms) / multipliers
    return unit * np.round(2.0**logarithms / unit)


def _folded(scale: np.ndarray, gain: np.ndarray, multipliers: int) -> np.ndarray:
    """Return what a scale becomes where a normalisation of this gain is folded into its weight, to the last bit."""
    if multipliers == 1:
        return np.asarray(scale * 2.0 ** np.round(np.log2(gain)))
    unit = 2.0 ** np.floor(np.log2(scale * gain)) / multipliers
    return np.asarray(unit * np.round(scale * gain / unit))


def decided_copy(q: Program, assignment: Assignment) -> nn.Module:
    """Return a plain float64 copy of the network that computes what an assignment decides.

    Weights are the levels of the codes times their scale, inputs are rounded by hooks, biases are rounded to the
    accumulator's step, and folded normalisations are gone. Scales are those that leave sums room.
    """
    net = copy.deepcopy(q.net).double().eval()
    plain = _numbers_of(net)
    weight_scales: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in q.weight_names:
        layer = next((m for m in q.layers if m.weight == name and m.norm), None)
        gain, _ = _norm(plain, net, layer) if layer else (np.ones(1), None)
        shape = [-1 if axis == layer.channel_axis else 1 for axis in range(len(layer.shape))] if layer else [1]
        levels, scale, kept = _decided(q.quantizer(name), assignment.widths[name], assignment.codes[name])
        size = np.where(np.abs(gain) < 2.0**-20, 1.0, np.abs(gain)).reshape(shape)
        shipped = _folded(scale, size, q.quantizer(name).multipliers)
        folded = np.where(np.abs(gain) < 2.0**-20, 0.0, gain).reshape(shape)
        weight = plain[name.removeprefix(".")] * (
            folded if q.quantizer(name).multipliers == 1 else shipped / scale * np.sign(folded)
        )
        for reader in [m for m in q.layers if m.weight == name and (m.input is None or m.input in q.input_names)]:
            bias = _bias(plain, net, reader)
            shipped = np.maximum(shipped, _least_scale(q, reader, weight, bias, shipped))
        weight_scales[name] = (shipped, np.where(kept, shipped, np.inf))
        net.get_parameter(name).data.copy_(torch.from_numpy(levels * shipped))
    for layer in q.layers:
        _replace_bias(q, net, plain, layer, assignment, weight_scales)
    for name, activation in q.activations.items():
        hooks = [_rounding(_scale(a), book_levels(a, 0)) for a in (activation.input, activation.output)]
        net.get_submodule(name).register_forward_pre_hook(hooks[0], with_kwargs=True)
        net.get_submodule(name).register_forward_hook(lambda _, args, y, hook=hooks[1]: hook(_, (y,), {})[0][0])
    return with_steps(q, net)


def _scale(quantizer: Quantizer) -> float:
    return float(2.0 ** np.round(_numbers(quantizer.log2_scale)[0]))


def _replace_bias(
    q: Program, net: nn.Module, plain: Mapping[str, np.ndarray], layer: Layer, assignment: Assignment,
    weight_scales: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:  # fmt: skip
    if layer.input is None or layer.input not in q.input_names:
        return
    for name in dict.fromkeys((layer.input, *([layer.weight] if layer.is_product else ()))):
        quantizer, module = q.quantizer(name), net.get_submodule(name.removesuffix(".input"))
        rung = list(quantizer.ladder.bits).index(float(assignment.widths[name]))
        scale = float(book_scales(quantizer)[rung])
        module.register_forward_pre_hook(_rounding(scale, book_levels(quantizer, rung)), with_kwargs=True)
    bias = _bias(plain, net, layer)
    if layer.norm:
        _set(net, layer.norm, nn.Identity())
    if bias is None or layer.weight not in weight_scales:
        return
    others = tuple(axis for axis in range(len(layer.shape)) if axis != layer.channel_axis)
    all_scales, unpruned = (scales.min(others) for scales in weight_scales[layer.weight])
    step = scale * np.where(np.isfinite(unpruned), unpruned, all_scales)
    step = np.tile(step, module.groups) if layer.transposed else step  # type: ignore[arg-type]
    rounded = torch.from_numpy(np.floor(bias / step + 0.5) * step)
    module.bias = nn.Parameter(rounded)


def _bias(plain: Mapping[str, np.ndarray], net: nn.Module, layer: Layer) -> np.ndarray | None:
    bias = plain.get(f"{layer.name}.bias")
    if not layer.norm:
        return bias
    gain, shift = _norm(plain, net, layer)
    return shift if bias is None else bias * gain + shift


def _least_scale(q: Program, layer: Layer, weight: np.ndarray, bias: Any, scales: np.ndarray) -> float:
    """Return what the scales of a weight with integer levels have to be, for sums of about 2^23 and biases of 2^25."""
    others = tuple(axis for axis in range(len(layer.shape)) if axis != layer.channel_axis)
    reach, unit = np.abs(weight).max(), 1.0
    if layer.input is not None:
        quantizer = q.quantizer(layer.input)
        inputs = book_scales(quantizer)
        most = max(scale * np.abs(book_levels(quantizer, k)).max() for k, scale in enumerate(inputs))
        reach, unit = np.abs(weight).sum(others).max() * most, inputs.min()
    offset = 0.0 if bias is None or layer.input is None else np.abs(bias).max()
    least = min(max(reach, offset) / unit / 2.0**23, scales.max() / 8)
    least = max(least, offset / unit / 2.0**25) if offset > reach else least
    return float(2.0 ** np.floor(np.log2(least))) if least else 0.0


def _rounding(scale: float, levels: np.ndarray) -> Any:
    def rounded(x: Tensor) -> Tensor:
        u = x.detach().double().numpy() / scale
        below = np.clip(np.searchsorted(levels, u, side="right") - 1, 0, len(levels) - 1)
        above = np.minimum(below + 1, len(levels) - 1)
        return torch.from_numpy(scale * np.where(levels[above] - u <= u - levels[below], levels[above], levels[below]))

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (rounded(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": rounded(kwargs["input"])}

    return hook


def _decided(quantizer: Quantizer, widths: Any, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the levels of decided codes, the scale of each, both in float64, and whether it is not pruned."""
    bits = np.broadcast_to(np.reshape(np.asarray(widths), quantizer.gates), codes.shape)
    found, scales, kept = np.zeros(codes.shape), np.ones(codes.shape), np.zeros(codes.shape, bool)
    for rung, of_rung in enumerate(quantizer.ladder.bits):
        scale = np.broadcast_to(book_scales(quantizer)[rung], codes.shape)
        levels = book_levels(quantizer, rung)
        here = bits == of_rung
        found = np.where(here, levels[np.minimum(codes, len(levels) - 1)], found)
        scales = np.where(here, scale, scales)
        kept = np.where(here, len(levels) > 1, kept)
    return found, scales, kept


def _norm(plain: Mapping[str, np.ndarray], net: nn.Module, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    deviation = np.sqrt(plain[f"{layer.norm}.running_var"] + 1e-5)
    gain = plain[f"{layer.norm}.weight"] / deviation
    return gain, plain[f"{layer.norm}.bias"] - plain[f"{layer.norm}.running_mean"] * gain


def _set(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _numbers_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: _numbers(tensor).copy() for name, tensor in net.state_dict().items()}


def rung_probabilities(quantizer: Quantizer) -> list[float]:
    """Return the probability of each rung of a quantizer with one gate chain, by the definition."""
    if quantizer.fixed is not None or len(quantizer.ladder) == 1:
        return [float(k == int(quantizer.fixed or 0)) for k in range(len(quantizer.ladder))]
    gates = [1 / (1 + math.exp(-float(logit))) for logit in quantizer.logits.tolist()]
    return [math.prod(gates[:k]) * (1 - gates[k] if k < len(gates) else 1.0) for k in range(len(gates) + 1)]


def width_states(q: Program) -> Iterator[tuple[dict[str, int], float]]:
    """Return every choice of rungs and its probability, for networks whose gates are shared by a tensor."""
    names = [name for name, _ in q.named_quantizers() if name not in q.sites]
    probabilities = [rung_probabilities(q.quantizer(name)) for name in names]
    for rungs in itertools.product(*(range(len(p)) for p in probabilities)):
        state = dict(zip(names, rungs, strict=True))
        tied = {name: state[site] for name, site in q.sites.items()}
        yield state | tied, math.prod(p[k] for p, k in zip(probabilities, rungs, strict=True))


def code_probabilities(quantizer: WeightQuantizer, weight: Tensor, rung: int) -> np.ndarray:
    """Return the probability of every code of every weight, `[weights, K]`.

    They are logistic cells over the nearest levels of a grid.
    """
    levels = book_levels(quantizer, rung)
    scale = np.broadcast_to(book_scales(quantizer)[rung], tuple(weight.shape)).reshape(-1)
    spread = math.exp(float(quantizer.log_spread.detach()))
    result = np.zeros((weight.numel(), len(levels)))
    for row, u in enumerate(_numbers(weight).reshape(-1) / scale):
        near = np.sort(np.argsort(np.abs(levels - u), kind="stable")[: quantizer.nearest])
        step = np.diff(levels[near]).mean() if len(near) > 1 else 1.0
        bounds = (levels[near][1:] + levels[near][:-1]) / 2
        below = 1 / (1 + np.exp(-(bounds - u) / (spread * step)))
        result[row, near] = np.diff(np.concatenate([[0.0], below, [1.0]]))
    return result


def enumerate_elbo(q: Program, x: Any, y: Tensor, size: int | None = None) -> float:
    """Return the exact evidence lower bound in nats, summed over every width and every code, of a small network.

    Args:
        q: a network on grids, gates shared by a tensor, nothing folded.
        x: a batch of inputs.
        y: its targets.
        size: number of examples in the data set, by default that of the batch.
    """
    likelihood = divergence = 0.0
    for rungs, probability in width_states(q):
        laws = {n: code_probabilities(w, q.net.get_parameter(n), rungs[n]) for n, w in q.weights.items()}
        widths = {n: quantizer.ladder.bits[rungs[n]] for n, quantizer in q.named_quantizers()}
        for codes, weight in _code_states(laws):
            shaped = {n: c.reshape(q.weights[n].shape) for n, c in codes.items()}
            likelihood += probability * weight * _log_likelihood(q, Assignment(widths, shaped, q.layers), x, y)
        if probability:
            widths_of = [q.quantizer(name) for name in rungs if name not in q.sites]
            prior = math.prod(1 / len(quantizer.ladder) for quantizer in widths_of if quantizer.free)
            divergence += probability * (math.log(probability / prior) + _code_divergence(q, laws))
    return likelihood * (size or len(y)) / len(y) - q.temperature * divergence


def _code_divergence(q: Program, laws: Mapping[str, np.ndarray]) -> float:
    """Return `KL(codes || uniform)` in nats of the weights whose codes are drawn."""
    drawn = [laws[n] for n, w in q.weights.items() if w.nearest > 1 and not q.rounding]
    return float(sum((p[p > 0] * np.log(p[p > 0] * p.shape[1])).sum() for p in drawn))


def _code_states(laws: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], float]]:
    rows = [[(k, p) for k, p in enumerate(row) if p > 0] for law in laws.values() for row in law]
    if math.prod(len(row) for row in rows) > MOST_STATES:
        raise ValueError("too many codes to enumerate; use a smaller network")
    ends = np.cumsum([len(law) for law in laws.values()])
    for state in itertools.product(*rows):
        parts = np.split(np.array([code for code, _ in state]), ends[:-1])
        yield dict(zip(laws, parts, strict=True)), math.prod(p for _, p in state)


@torch.no_grad()
def _log_likelihood(q: Program, assignment: Assignment, x: Any, y: Tensor) -> float:
    args = map_tensors(lambda a: a.double() if a.is_floating_point() else a, arguments(x))
    output = call(decided_copy(q, assignment), args)
    return float(q.law(output, y).log_prob(y.reshape(q.law(output, y).batch_shape)).sum())
