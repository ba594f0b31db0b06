"""`csmpq` gives more bits to layers whose channels tell classes apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probq.criteria.measuring.energies import importance_energy
from probq.criteria.measuring.layer_outputs import layer_outputs
from probq.criteria.measuring.perturbed import Batch
from probq.criteria.measuring.ready import checked_examples
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError

ROUNDING = 1e-9  # relative; frequencies that are equal but for it count as equal


def csmpq(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    progress: bool = True,
) -> Energy:
    """`E_i(b) = theta_i (b_max - b)`, where `theta_i` says how well a layer's features tell classes apart:

        theta_i = mean over classes k of sum_c tf_kc idf_c,
        tf_kc = a_kc / sum_c a_kc,    idf_c = log((1 + classes) / (1 + classes with tf_kc >= mean over c of tf_kc)).

    Channels `c` are words, classes are documents: `a_kc` is the sum of the positive outputs of channel `c` over all
    examples of class `k` and all places, in the float network. A channel that is frequent in all classes says nothing.
    A layer with nothing but such channels has the energy 0.

    The source is followed in its idea: the mean as what a frequent word exceeds, positive outputs as counts, and a
    `theta` that is the separability itself are choices made here. The energy is no loss and has no unit; the rest is as
    in `ompq`.

    Args:
        q: from `quantize`.
        batches: iterable of `(input, class)`, classes `[batch]`; targets below 0 are not looked at.
        examples: greatest number of examples, kept in memory.
        of: as in `loss`.
        progress: show a progress bar.

    Raises:
        ProbqError: if there are no labels, they are not one class for each example, there are fewer than two classes,
            or no such quantizer has a choice.

    Source: M. Wang, T. Jin, M. Zhang, Z. Yu, 2022, "CSMPQ: Class Separability Based Mixed-Precision Quantization".

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.rand(32, 4), torch.arange(32) % 3
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> csmpq(q, [(x, y)], progress=False)
        Energy(csmpq, additive: 3 quantizers, 13 rungs)
    """
    data = checked_examples(q, batches, examples, "csmpq", labels=True, of=of)
    classes = _classes(data)
    counts = _counts(q, data, classes, progress)
    return importance_energy(q, {name: separability(count) for name, count in counts.items()}, of, "csmpq")


def separability(counts: np.ndarray) -> float:
    """Return the mean over classes of the sum of TF-IDF over channels.

    Args:
        counts: how much each channel fires for each class, `[classes, channels]`, 0 or more.
    """
    totals = counts.sum(1, keepdims=True)
    tf = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    frequent = (tf >= (1 - ROUNDING) / counts.shape[1]).sum(0)
    idf = np.log((1 + len(counts)) / (1 + frequent))
    return float((tf * idf).sum(1).mean())


def _classes(data: Iterable[Batch]) -> Tensor:
    """Return the classes that occur, ascending.

    Raises:
        ProbqError: if targets are no classes, or there are fewer than two.
    """
    targets = [y for _, y in data if y is not None]
    for y in targets:
        if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() != 1:
            given = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else "targets of several outputs"
            raise ProbqError(
                f"criteria.csmpq takes one class for each example, integers [batch], not {given}; "
                "without classes use probq.criteria.ompq or kl"
            )
    every = torch.cat(targets)
    found = every[every >= 0].unique()
    if len(found) < 2:
        raise ProbqError(
            f"criteria.csmpq tells classes apart, and {len(every)} examples have {len(found)}; give examples of two "
            "classes or more, in the order of a shuffled DataLoader"
        )
    return found


def _counts(q: Program, data: list[Batch], classes: Tensor, progress: bool) -> dict[str, np.ndarray]:
    """Return how much each channel of each layer fires for each class, `[classes, channels]`."""
    counts: dict[str, np.ndarray] = {}
    for x, y in tqdm(data, disable=not progress, unit="batch", dynamic_ncols=True):
        member = (y == classes[:, None]).double()
        for name, outputs in layer_outputs(q, x).items():
            fired = sum(output.clamp_min(0).sum(1) for output in outputs)
            counts[name] = counts.get(name, 0) + (member @ fired).cpu().numpy()
    return counts
