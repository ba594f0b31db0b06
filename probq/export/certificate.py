"""A certificate is a JSON file beside an artefact that says what was compared, with what, and what it costs."""

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probq.export.common.model_argument import require_model
from probq.export.targets import TARGETS
from probq.export.verification import Report
from probq.integer import IntegerModel
from probq.integer.ranges import LAYERS, accumulators
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.paths import target_path

LIBRARIES = ("probq", "numpy", *dict.fromkeys(library for target in TARGETS for library in target.libraries))


def certify(model: IntegerModel, path: str | PathLike[str], report: Report) -> Path:
    """Write `PATH.json` beside an artefact, whole or not at all, and return its path.

    It holds the hashes of model and artefact, the target and the versions in use, inputs compared and differing, the
    artefact's size in bytes, the bits that the model's parameters take, its BOPs (null where the model does not
    record them), and for every layer the proven accumulator bound with the bits it needs.

    Args:
        model: the integer model.
        path: the path of the artefact.
        report: what `verify` returned for it.

    Raises:
        ProbqError: there is no artefact, or the file cannot be written.
    """
    require_model(model, "export.certify")
    path = target_path(path)
    if not path.exists():
        raise ProbqError(f"there is no file {path} to certify; give the path that write was given")
    beside = path.with_name(path.name + ".json")
    with replace_atomically(beside) as temporary:
        temporary.write_text(json.dumps(content(model, path, report), indent=2) + "\n", encoding="utf-8")
    return beside


def content(model: IntegerModel, path: Path, report: Report) -> dict[str, Any]:
    """Return what the certificate says, as JSON takes it."""
    digest, size = hashed(path)
    return {
        "format": "probq.certificate",
        "version": 1,
        "model_sha256": model.sha256(),
        "artefact": path.name,
        "artefact_sha256": digest,
        "target": report.target,
        "compared": report.compared,
        "differing": report.differing,
        "seconds": round(report.seconds, 3),
        "bytes": size,
        "bits": sum(node.bits for node in model.nodes),
        "bops": model.metadata.get("bops"),
        "accumulators": bounds(model),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": platform.machine(),
    }


def hashed(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the number of bytes of a file.

    Those of a folder are of its files' names and contents in order of their names.
    """
    if path.is_file():
        artefact = path.read_bytes()
        return hashlib.sha256(artefact).hexdigest(), len(artefact)
    digest, size = hashlib.sha256(), 0
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        artefact = file.read_bytes()
        name = file.relative_to(path).as_posix()
        digest.update(f"{name} {len(artefact)}\n".encode() + artefact)
        size += len(artefact)
    return digest.hexdigest(), size


def bounds(model: IntegerModel) -> dict[str, dict[str, int]]:
    """Return each layer's proven accumulator bound and the width of a signed integer that holds it."""
    found = model.ranges
    result = {}
    for node in model.nodes:
        if node.op in LAYERS:
            ends = np.concatenate(accumulators(node, found[node.inputs[0]]))
            bound = int(max(abs(end) for end in ends)) if ends.size else 0
            result[node.name] = {"bound": bound, "bits": bound.bit_length() + 1}
    return result


def _versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
