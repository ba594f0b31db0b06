"""The rounding of each weight, up or down, is learned so that outputs come near those of the float network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probq.codebooks.rounding.nearest import code_indices, nearest_level
from probq.codebooks.rounding.vectors import Vectors
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.decided import decided_inputs, float_reference
from probq.training.ptq.reconstruction.partial_run import PartialRun
from probq.training.ptq.reconstruction.soft_rounding import SoftRounding
from probq.training.ptq.reconstruction.units import units
from probq.utils.arguments import check_number, check_seed
from probq.utils.random_stream import Stream

RATE = 0.05
FREE = 0.2  # share of the steps before weights are drawn to their levels
SHARPEST, FLATTEST = 20.0, 2.0  # beta
STRENGTH = 1.0  # of what draws them, beside an error of 1 in units of that of the given codes


def reconstruct(
    q: Quantized,
    batches: Iterable[Any],
    *,
    unit: str = "layer",
    steps: int = 300,
    examples: int = 512,
    seed: int | None = 0,
    reference: Quantized | None = None,
    progress: bool = True,
) -> Quantized:
    """Return the decided network with weights rounded up or down as learned, unit by unit:

        min_v ||f(x) - f~(x~; W~)||^2 + lambda sum 1 - |2 h(v) - 1|^beta,    W~ = s (lower + h(v) (upper - lower)),

    where `f(x)` is what the float network gives to the next layer behind the unit, functions in between included, and
    `f~` the decided one, behind units that are learned already. `beta` falls from 20 to 2, which draws each weight to
    one of the two levels around it. Adam takes the steps on 32 examples each. A unit keeps the codes that it has, or
    those of nearest rounding, where these have less error on all examples: it never ends above either.

    Layers of all kinds are taken but embeddings, layers with weights that others share or a forward of their own, and
    those on whose weight nothing behind depends; these stay as they are.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        unit: what is learned together: each "layer", two adjacent ones ("pair"), or the layers of a "block", the
            smallest module within the network that holds several; a layer in none is a unit.
        steps: of each unit.
        examples: greatest number of examples, kept in memory with what reaches the unit.
        seed: of the order of the examples.
        reference: the network whose float weights and outputs are meant; by default those of `q` before any rounding.
        progress: show a progress bar.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network or the reference is not decided, there is no data, or no such unit.

    Source: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, 2020, "Up or Down? Adaptive Rounding for
    Post-Training Quantization"; Y. Li et al., 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block
    Reconstruction" (blocks); C. Lin et al., 2022, "Unit-wise calibration" (adjacent layers).

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(64, 4)
        >>> q = probq.quantize(torch.nn.Linear(4, 2), x, probq.uniform(2, 8))
        >>> learned = probq.ptq.reconstruct(q.at(q.mode()), [x], steps=50, progress=False)
        >>> learned.mode().widths == q.mode().widths
        True
    """
    inputs = decided_inputs(q, batches, examples, "reconstruct")
    check_number("steps", steps, 1)
    check_seed(seed)
    chosen, run = units(q, unit), PartialRun(q, float_reference(q, reference, "reconstruct"), inputs)
    with (
        Stream(seed).training(),
        tqdm(total=steps * len(chosen), disable=not progress, unit="step", desc="round", dynamic_ncols=True) as bar,
    ):
        for layers in chosen:
            if run.enter(layers):
                run.levels.update(_learned(run, [layer.weight for layer in layers], steps, bar))
    codes = {n: code_indices(run.rungs[n].levels, level).int().cpu().numpy() for n, level in run.levels.items()}
    assignment = q.mode()
    return q.at(replace(assignment, codes={**assignment.codes, **codes}))


def _learned(run: PartialRun, names: list[str], steps: int, bar: Any) -> Mapping[str, Tensor]:
    """Return the best levels of a unit's weights: learned, nearest, or those that they have.

    Vectors, which are rounded several weights at a time, stay those that they are.
    """
    given, nearest, soft = {}, {}, {}
    for name in names:
        rung, zeros = run.rungs[name], run.q.weights[name].zeros
        if isinstance(rung.levels, Vectors):
            continue
        given[name] = run.levels[name]
        with torch.no_grad():
            u = run.reference.location(name, rung) / rung.scale
            nearest[name] = nearest_level(u, rung.levels).to(given[name])
            soft[name] = SoftRounding(u, rung.levels, zeros)
    least = run.objective(given)
    if least > 0 and soft:
        _descend(run, soft, steps, least / len(run.batches), bar)
    several = [given, nearest, {name: one.hard() for name, one in soft.items()}]
    return min(several, key=run.objective)  # the first of equal ones


def _descend(run: PartialRun, soft: Mapping[str, SoftRounding], steps: int, unit: float, bar: Any) -> None:
    """Learn the rounding of a unit; errors are in units of that of the given codes."""
    optimizer = torch.optim.Adam([one.v for one in soft.values()], RATE)
    count, free = sum(one.v.numel() for one in soft.values()), int(FREE * steps)
    for step in range(steps):
        number = int(torch.randint(len(run.batches), ()))
        loss = run.error(number, {name: one.soft() for name, one in soft.items()}) / unit
        if step >= free:
            beta = FLATTEST + (SHARPEST - FLATTEST) * (1 - (step - free) / (steps - free))
            loss = loss + STRENGTH / count * torch.stack([one.undecided(beta) for one in soft.values()]).sum()
        bar.update()
        if not loss.requires_grad:
            continue  # these examples do not reach the unit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
