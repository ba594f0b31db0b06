"""The safetensors file of an energy holds arrays, a JSON header, and one hash over both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import safetensors.numpy

from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.manifest import KEY, FileFormat, manifest_text

FORMAT = FileFormat(name="probq.energy", version=1, writer="Energy.save", again="save it again")


def write(path: str | PathLike[str], content: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        ProbqError: if it cannot be written.
    """
    manifest: dict[str, Any] = {"format": FORMAT.name, "version": FORMAT.version, **content}
    manifest["sha256"] = _digest(manifest, tensors)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    data = safetensors.numpy.save(arrays, {KEY: manifest_text(manifest)})
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file, its hash checked.

    Raises:
        ProbqError: if there is no such file, it is damaged, edited or of another kind.
    """
    with FORMAT.opened(path, "numpy") as file:
        manifest = FORMAT.manifest(file.metadata() or {})
        try:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (TypeError, ValueError) as error:  # of a kind that numpy lacks
            raise ProbqError(f"its numbers cannot be read ({error!s:.80}); save it again") from error
    if _digest({k: v for k, v in manifest.items() if k != "sha256"}, tensors) != manifest.get("sha256"):
        raise ProbqError(f"{path} does not have the recorded SHA-256: it was edited or damaged; save it again")
    return manifest, tensors


def _digest(manifest: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(manifest_text(manifest).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
