"""Files as a stranger might make them: edits of bytes, edits of JSON with right hashes, extreme values."""

import contextlib
import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from probq.utils.errors import ProbqError

EXTREMES = (
    0, 1, -1, 2, 3, 255, 10**6, 2**31 - 1, 2**31, 2**53, -(2**53), 2**61, 2**63, 2**64, 10**299, 10**400,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), 2.0**-1074, 2.0**1023, True, False, None,
    "", "a", "a/b", "../a", "\x1b[2J", "\u202e", "\ud800", "..", "\0", "x" * 5000,
    [], {}, [[]], [0], [-1], [10**6], [2**31 - 1] * 3, [[0, 0]], [[10**6, 10**6]], {"a": 1},
)  # fmt: skip


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails what takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(use: Callable[[], Any], seconds: float = 10) -> Any:
    """What a use of a file gives, or the ProbqError that refuses it; anything else fails the test.

    The error is one of a few hundred letters, none of which a terminal obeys.
    """
    with within(seconds):
        try:
            return use()
        except ProbqError as error:
            text = str(error)
            assert text
            assert len(text) < 2000
            return error


def read(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The blobs and the manifest of a safetensors file that probq wrote."""
    with safetensors.safe_open(path, framework="numpy") as file:
        manifest = json.loads(file.metadata()["probq"])
    return safetensors.numpy.load_file(path), manifest


def forge(path: Path, blobs: dict[str, np.ndarray], manifest: Any) -> None:
    """A file of someone who knows the format: the manifest's hash is right, and so is that of each blob it names."""
    nodes = manifest.get("nodes") if isinstance(manifest, dict) else None
    for node in nodes if isinstance(nodes, list) else []:
        tensors = node.get("tensors") if isinstance(node, dict) else None
        for name, entry in tensors.items() if isinstance(tensors, dict) else []:
            _seal(entry, f"{node.get('name')}/{name}", blobs)
            _seal(entry.get("rung") if isinstance(entry, dict) else None, f"{node.get('name')}/{name}/rung", blobs)
    text = json.dumps(manifest)
    metadata = {"probq": text, "probq.sha256": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file(blobs, path, metadata)


def _seal(entry: Any, key: str, blobs: dict[str, np.ndarray]) -> None:
    if isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and key in blobs:
        entry["sha256"] = hashlib.sha256(blobs[key].tobytes()).hexdigest()


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of keys to every part of a JSON value."""
    yield here
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*here, key))


def edited(value: Any, rng: np.random.Generator) -> Any:
    """A copy of a JSON value with one part replaced, dropped, doubled, or swapped with another."""
    value = json.loads(json.dumps(value))
    where = [place for place in places(value) if place]
    place = where[rng.integers(len(where))]
    holder = _at(value, place[:-1])
    kind = rng.integers(6)
    if kind == 0:
        del holder[place[-1]]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(place[-1], json.loads(json.dumps(holder[place[-1]])))
    elif kind == 2:
        other = where[rng.integers(len(where))]
        holder[place[-1]] = json.loads(json.dumps(_at(value, other)))
    elif kind == 3 and type(holder[place[-1]]) in (int, float):
        holder[place[-1]] = [-1, 2, 3, 1000, 2**20, 0.5][rng.integers(6)] * holder[place[-1]]
    else:
        holder[place[-1]] = EXTREMES[rng.integers(len(EXTREMES))]
    return value


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one of them changed, some cut out, repeated, or the end lost."""
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    return [
        content[:start] + rng.bytes(1) + content[start + 1 :],
        content[:start] + content[end:],
        content[:end] + content[start:],
        content[:start],
    ][rng.integers(4)]
