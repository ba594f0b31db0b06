"""Many choices of widths are measured with a progress bar, and a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from probq.criteria.measuring.perturbed import PerturbedNetwork
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError

SAVE_EVERY = 20  # measurements between two looks at the file
Choice = tuple[tuple[str, int], ...]  # quantizers that are not on their widest rung, with their widths


def single_choices(network: PerturbedNetwork) -> list[Choice]:
    """Return every quantizer on each of its narrower rungs, all others on the widest."""
    return [((name, b),) for name, bits in zip(network.names, network.widths, strict=True) for b in bits[:-1]]


def pair_choices(network: PerturbedNetwork) -> list[Choice]:
    """Return every two quantizers on each pair of narrower rungs, all others on the widest."""
    single = single_choices(network)
    return [a + b for k, a in enumerate(single) for b in single[k + 1 :] if a[0][0] != b[0][0]]


def measured(
    network: PerturbedNetwork,
    choices: Iterable[Choice],
    value: Callable[[Mapping[str, int]], float],
    resume: str | PathLike[str] | None,
    progress: bool,
) -> dict[Choice, float]:
    """Measure the value of each choice, the widest rungs included as `()`.

    Args:
        network: that is measured.
        choices: to measure.
        value: of given widths.
        resume: file that keeps what was measured; one of the same network and data is read first.
        progress: show a progress bar.

    Raises:
        ProbqError: if a value is not finite, or the file is of another measurement.
    """
    wanted, key = [(), *choices], _key(network)
    found = _read(resume, key)
    bar = tqdm([c for c in wanted if c not in found], disable=not progress, unit="network", dynamic_ncols=True)
    try:
        for number, choice in enumerate(bar, 1):
            found[choice] = value(dict(choice))
            if not math.isfinite(found[choice]):
                where = dict(choice) or "the widest rungs"
                raise ProbqError(f"the loss is {found.pop(choice)} at {where}; check the data")
            if number % SAVE_EVERY == 0:
                _write(resume, key, found)
    finally:
        _write(resume, key, found)
    return {choice: found[choice] for choice in wanted}


def unary_energies(network: PerturbedNetwork, found: Mapping[Choice, float]) -> tuple[np.ndarray, ...]:
    """Return what each rung adds to the value of the widest ones."""
    rows = zip(network.names, network.widths, strict=True)
    return tuple(np.array([found[((name, b),)] - found[()] for b in bits[:-1]] + [0.0]) for name, bits in rows)


def _key(network: PerturbedNetwork) -> str:
    """Return a hash of what decides the values: the state of the network and the data."""
    digest = hashlib.sha256(json.dumps([network.names, network.widths]).encode())
    tensors = [*network.q.state_dict().values(), *(a for x, y in network.batches for a in (x, y))]
    for tensor in tensors:
        for one in tensor if isinstance(tensor, tuple) else (tensor,):
            if hasattr(one, "detach"):
                digest.update(one.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(resume: str | PathLike[str] | None, key: str) -> dict[Choice, float]:
    if resume is None or not Path(resume).exists():
        return {}
    try:
        content = json.loads(Path(resume).read_text("utf-8"))
        rows = {tuple((str(n), int(b)) for n, b in choice): float(v) for choice, v in content["values"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ProbqError(f"{resume} is no file of measurements ({error!s:.80}); remove it, or name another") from error
    if content.get("key") != key:
        raise ProbqError(f"{resume} keeps measurements of another network or other data; remove it, or name another")
    return rows


def _write(resume: str | PathLike[str] | None, key: str, found: Mapping[Choice, float]) -> None:
    if resume is not None:
        with replace_atomically(resume) as temporary:
            temporary.write_text(json.dumps({"key": key, "values": list(found.items())}), encoding="utf-8")
