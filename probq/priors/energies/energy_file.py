"""The safetensors file of an energy holds arrays, a JSON header, and one hash over both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError

FORMAT, VERSION = "probq.energy", 1


def write(path: str | PathLike[str], content: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        ProbqError: if it cannot be written.
    """
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, **content}
    manifest["sha256"] = _digest(manifest, tensors)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    data = safetensors.numpy.save(arrays, {"probq": _text(manifest)})
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file, its hash checked.

    Raises:
        ProbqError: if there is no such file, it is damaged, edited or of another kind.
    """
    if not Path(path).is_file():
        raise ProbqError(f"there is no file {path}; give the path that Energy.save wrote")
    try:
        with safe_open(path, framework="numpy") as file:
            manifest = json.loads((file.metadata() or {}).get("probq", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, RecursionError, TypeError) as error:
        raise ProbqError(f"{path} is not an energy's file, or is damaged ({error!s:.120}); save it again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ProbqError(f"{path} holds no energy; give the path that Energy.save wrote")
    if manifest.get("version") != VERSION:
        raise ProbqError(f"{path} has version {manifest.get('version')!r:.40}, this probq reads {VERSION}")
    if _digest({k: v for k, v in manifest.items() if k != "sha256"}, tensors) != manifest.get("sha256"):
        raise ProbqError(f"{path} does not have the recorded SHA-256: it was edited or damaged; save it again")
    return manifest, tensors


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"))


def _digest(manifest: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_text(manifest).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
