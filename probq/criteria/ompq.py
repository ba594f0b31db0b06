"""`ompq` gives more bits to layers whose features are orthogonal to those of others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from probq.criteria.measuring.energies import importance_energy
from probq.criteria.measuring.layer_outputs import layer_outputs
from probq.criteria.measuring.perturbed import Batch
from probq.criteria.measuring.ready import checked_examples
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, rows_of, tensors_in, with_tensors


def ompq(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 32,
    beta: float = 1.0,
    of: str = "both",
    progress: bool = True,
) -> Energy:
    """`E_i(b) = theta_i (b_max - b)`, where `theta_i` falls with how much a layer's features repeat those of others:

        theta_i = exp(-beta sum_{j != i} ORM_ij),
        ORM_ij = ||f_i' f_j||^2 / (||f_i' f_i|| ||f_j' f_j||)    (Frobenius norms).

    `f_i` are the outputs of layer `i` in the float network, `[examples, features]`, not centred: ORM is linear CKA but
    for that, 0 for orthogonal features and 1 for the same ones. All `theta` are divided by the largest. It needs no
    labels, one pass over a few examples, and a network that keeps examples on the first axis.

    The energy is no loss and has no unit, so that it cannot be added to one in nats; the least energy under a budget
    has the largest `sum_i theta_i b_i`. Weight and input of a layer have the same `theta`; a quantizer that serves
    several layers has their sum.

    Args:
        q: from `quantize`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: greatest number of examples, which run through the network together.
        beta: how much importances differ, above 0.
        of: as in `loss`.
        progress: show a progress bar.

    Raises:
        ProbqError: if there are fewer than two examples or they cannot run together, a layer gives zeros alone, or no
            such quantizer has a choice.

    Source: Y. Ma et al., 2021, "OMPQ: Orthogonal Mixed Precision Quantization".

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.rand(32, 4)
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> ompq(q, [x], progress=False)
        Energy(ompq, additive: 3 quantizers, 13 rungs)
    """
    if not 0 < beta < math.inf:
        raise ProbqError(f"beta is a positive number, not {beta!r:.80}")
    data = checked_examples(q, batches, examples, "ompq", labels=False, of=of)
    names = [layer.name for layer in q.layers]
    overlaps = orthogonality(_grams(q, together(data), progress), names)
    crowding = overlaps.sum(1) - overlaps.diagonal()
    theta = np.exp(-beta * (crowding - crowding.min()))
    return importance_energy(q, dict(zip(names, theta.tolist(), strict=True)), of, "ompq")


def orthogonality(grams: np.ndarray, names: list[str]) -> np.ndarray:
    """Return `ORM_ij = <K_i, K_j> / (||K_i|| ||K_j||)` of layers' Gram matrices `K = f f'`, `[layers, layers]`.

    `||f_i' f_j||^2 = <f_i f_i', f_j f_j'>` needs no matrix larger than examples by examples.

    Args:
        grams: `[layers, examples, examples]`.
        names: of the layers, for messages.

    Raises:
        ProbqError: if a Gram matrix is zero.
    """
    flat = grams.reshape(len(grams), -1)
    norms = np.linalg.norm(flat, axis=1)
    if not norms.all():
        raise ProbqError(
            f"{names[int(norms.argmin())]} gives nothing but zeros on these examples, so that it has no direction to "
            "compare; give other examples"
        )
    flat = flat / norms[:, None]
    return np.asarray(flat @ flat.T)


def together(data: list[Batch]) -> Any:
    """Return the inputs of several batches as one.

    Raises:
        ProbqError: if there are fewer than two examples, or inputs of several sizes.
    """
    several = [arguments(x) for x, _ in data]
    try:
        parts = zip(*(list(tensors_in(one)) for one in several), strict=True)
        joined = tuple(with_tensors(several[0], [torch.cat(each) for each in parts]))
    except (RuntimeError, ValueError) as error:
        raise ProbqError("criteria.ompq takes inputs of one size; crop or pad them") from error
    if rows_of(joined) < 2:
        raise ProbqError("criteria.ompq compares layers over examples: give 2 or more, better 32")
    return joined[0] if isinstance(data[0][0], torch.Tensor) else joined


def _grams(q: Program, x: Any, progress: bool) -> np.ndarray:
    """Return the Gram matrix of each layer's features, all calls side by side, `[layers, examples, examples]`."""
    outputs = layer_outputs(q, x)
    grams = []
    for layer in tqdm(q.layers, disable=not progress, unit="layer", dynamic_ncols=True):
        features = torch.cat([output.flatten(1) for output in outputs.pop(layer.name)], 1)
        grams.append((features @ features.T).cpu().numpy())
    return np.stack(grams)
