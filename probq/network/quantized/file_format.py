"""A posterior's safetensors file holds tensors under their own keys and all else as JSON, with one hash over both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from probq.network.quantized.checks import check_parts
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.manifest import KEY, FileFormat, manifest_text

FORMAT = FileFormat(
    name="probq.posterior",
    version=1,
    writer="Quantized.save",
    again="save it again",
    others=(
        ("probq.integer", "it holds an integer model, not a posterior; load it with probq.IntegerModel.load(path)"),
        ("probq.checkpoint", "it is a checkpoint of a fit; make the same call of probq.fit again to go on from it"),
    ),
)


def write(path: str | PathLike[str], content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file under a temporary name beside `path`, then move it there: it appears whole or not at all.

    Args:
        path: the path of the file; an existing one is replaced.
        content: what JSON can hold; kept under the metadata key `probq` with format, version and SHA-256 added.
        tensors: on the CPU, no two of them in the same memory.

    Raises:
        ProbqError: if the file cannot be written.
    """
    manifest: dict[str, Any] = {"format": FORMAT.name, "version": FORMAT.version, **content}
    manifest["sha256"] = digest(manifest, tensors)
    data = safetensors.torch.save(dict(tensors), {KEY: manifest_text(manifest)})
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the manifest and the tensors of a posterior file after checking their hash; this needs no network.

    Raises:
        ProbqError: if there is no such file, or it is damaged, edited or of another kind, or its parts are
            not what a posterior holds.
    """
    with FORMAT.opened(path, "pt") as file:
        manifest = FORMAT.manifest(file.metadata() or {})
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    found = digest({k: v for k, v in manifest.items() if k != "sha256"}, tensors)
    if found != manifest.get("sha256"):
        raise ProbqError(f"{path} does not have the recorded SHA-256: it was edited or damaged; save it again")
    try:
        check_parts(manifest, tensors)
    except ProbqError as error:
        raise ProbqError(f"{path} is not a valid posterior: {error!s:.300}; save it again") from error
    return manifest, tensors


def digest(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a manifest and of names, types, shapes and bytes of tensors."""
    result = hashlib.sha256(manifest_text(manifest).encode())
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
