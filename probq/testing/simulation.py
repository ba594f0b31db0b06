"""Simulation-based calibration draws data from the model itself, and ranks the true widths in the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.network.program.program import Program
from probq.testing.mean_field import Joint


def draw_from_prior(q: Program, joint: Joint, generator: np.random.Generator) -> tuple[tuple[int, ...], Tensor]:
    """Draw rungs from the prior, and targets at them and at codes drawn from theirs."""
    rungs = tuple(int(generator.choice(len(p), p=p.exp().numpy())) for p in joint.log_widths)
    laws = [law.exp().numpy() for law in joint.axes(rungs, joint.log_codes)]
    state = tuple(int(generator.choice(len(law), p=law / law.sum())) for law in laws)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**62)))
        return rungs, q.law(joint.outputs[rungs][state]).sample()


def rank(probs: Mapping[Any, float], truth: Any, generator: np.random.Generator) -> float:
    """Return the randomised position of the truth among its alternatives.

    It is uniform on (0, 1) where `probs` are the right law.

    Alternatives keep their order: `P(before the truth) + u P(truth)`, `u` uniform.

    Source: S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, 2018, "Validating Bayesian Inference Algorithms
    with Simulation-Based Calibration"; A. Dawid, 1984, "Present Position and Potential Developments" (randomised).
    """
    before = sum(p for key, p in probs.items() if key < truth)
    return float(before + generator.random() * probs[truth])


def calibration(records: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return `sum (came - p)` and its standard deviation.

    The records are pairs: the probability given to an event, and 0 or 1 whether it came.

    The deviation is that of events of exactly these probabilities; a calibrated posterior stays within a few of them.
    """
    p, came = np.array(records).T
    return float((came - p).sum()), float(np.sqrt((p * (1 - p)).sum()))
