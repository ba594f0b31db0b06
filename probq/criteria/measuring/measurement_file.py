"""The file of a measurement keeps what was measured with a key that says of what, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probq.criteria.measuring.perturbed import PerturbedNetwork
from probq.likelihoods.entries import to_entry as likelihood_to_entry
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path

SAME = 1e-3  # relative; what other devices and versions of torch change in a loss is far below
Choice = tuple[tuple[str, int], ...]  # quantizers that are not on their widest rung, with their widths


def key(network: PerturbedNetwork, measure: str) -> str:
    """Return a hash of what decides the values: the measure, the network, codebooks, likelihood and data."""
    q, likelihood = network.q, network.q.likelihood
    said: list[Any] = [measure, network.operations, q.sites, type(likelihood).__name__, likelihood_to_entry(likelihood)]
    said += [network.names, network.widths, {name: w.multipliers for name, w in q.weights.items()}]
    said += [{name: a.bits for name, a in q.activations.items()}, q.held, [layer.norm for layer in q.layers]]
    digest = hashlib.sha256(json.dumps(said).encode())
    levels = [rung.levels() for _, quantizer in q.named_quantizers() for rung in quantizer.ladder.rungs]
    examples = [a for batch in network.batches for part in batch for a in (part if isinstance(part, tuple) else [part])]
    for value in (*q.state_dict().values(), *levels, *examples):
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(resume: str | PathLike[str] | None, key: str) -> dict[Choice, float]:
    """Return what a file keeps, nothing if there is none yet.

    Raises:
        ProbqError: if the file is of another measurement, or of another kind.
    """
    if resume is None or not checked_path(resume).exists():
        return {}
    try:
        content = json.loads(Path(resume).read_text("utf-8"))
        rows = {tuple((str(n), int(b)) for n, b in choice): float(v) for choice, v in content["values"]}
        if not all(map(math.isfinite, rows.values())):
            raise ValueError("a value is not finite")
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ProbqError(f"{resume} is no file of measurements ({error!s:.80}); remove it, or name another") from error
    if content.get("key") != key:
        raise _of_another(resume)
    return rows


def check_reference(resume: str | PathLike[str] | None, there: float, here: float) -> None:
    """Raise unless a file has the value that was measured here for the widest rungs.

    The key cannot know what a function of the user's computes, such as a likelihood.

    Raises:
        ProbqError: if it has another.
    """
    if abs(there - here) > SAME * max(1.0, abs(here)):
        raise _of_another(resume)


def _of_another(resume: str | PathLike[str] | None) -> ProbqError:
    return ProbqError(
        f"{resume} keeps measurements of another network, other data or another criterion, plan or likelihood, or of "
        "an older probq; remove it, or name another file"
    )


def write(resume: str | PathLike[str] | None, key: str, found: Mapping[Choice, float]) -> None:
    """Write what was measured, unless no file is wanted.

    Raises:
        ProbqError: if it cannot be written.
    """
    if resume is not None:
        with replace_atomically(resume) as temporary:
            temporary.write_text(json.dumps({"key": key, "values": list(found.items())}), encoding="utf-8")
