"""The certificates of exported artefacts say what was run, compared and found equal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from probq.evaluation.reporting.page import Cell, Element, Paragraph, number, table
from probq.export.certificate import hashed
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path

FORMAT, LARGEST = "probq.certificate", 2**24  # bytes


@dataclass(frozen=True)
class Certificate:
    """A certificate holds what its file says, each part of the right type; see `probq.export.certificate`.

    Attributes:
        path: the path of the file.
        target, artefact, model: kind, file name and SHA-256 of the model.
        compared, differing, size: inputs compared, those with any other integer, and bytes.
        digest: SHA-256 of the artefact as it was certified.
    """

    path: Path
    target: str
    artefact: str
    model: str
    compared: int
    differing: int
    size: int
    digest: str

    @property
    def state(self) -> str:
        """Return whether the artefact beside the certificate is still the one that was run."""
        if self.artefact in ("", "..") or self.artefact != Path(self.artefact).name:
            return "not here"
        beside = self.path.with_name(self.artefact)
        try:
            if not beside.exists():
                return "not here"
            return "unchanged" if hashed(beside)[0] == self.digest else "changed since"
        except OSError:
            return "cannot be read"


def read(path: str | PathLike[str]) -> Certificate:
    """Return the certificate of a file.

    Raises:
        ProbqError: if there is no such file, or it is no certificate.
    """
    path = checked_path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            raise ValueError("its format is another")
        texts = [entry[key] for key in ("target", "artefact", "model_sha256", "artefact_sha256")]
        counts = [entry[key] for key in ("compared", "differing", "bytes")]
        if not all(type(text) is str for text in texts) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("a part of it is of the wrong kind")
    except FileNotFoundError as error:
        raise ProbqError(f"there is no file {path}; give the JSON file that export --verify wrote") from error
    except (OSError, KeyError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else f"{error!s:.80}"
        raise ProbqError(f"{path} is not a certificate ({reason}); give the JSON file beside an artefact") from error
    (target, artefact, model, digest), (compared, differing, size) = texts, counts
    return Certificate(path, target, artefact, model, compared, differing, size, digest)


def beside(path: Path, model: str) -> list[Certificate]:
    """Return the certificates in a model's folder that were made of this very model."""
    found = []
    for file in sorted(path.parent.glob("*.json")):
        try:
            certificate = read(file)
        except ProbqError:
            continue  # some other JSON file
        found += [certificate] if certificate.model == model else []
    return found


def given(paths: Iterable[str | PathLike[str]], model: str | None) -> list[Certificate]:
    """Return the certificates of files that the user named.

    Raises:
        ProbqError: if one is no certificate, or of another model than that of the report.
    """
    found = [read(path) for path in paths]
    for certificate in found:
        if model is not None and certificate.model != model:
            raise ProbqError(f"{certificate.path} certifies another model; export and verify this one")
    return found


def elements(certificates: list[Certificate], sure: bool) -> list[Element]:
    """Return what the page says about certificates; `sure` where they are known to be of what the page is about."""
    if not certificates:
        return []
    bad = [c for c in certificates if c.differing or not c.compared or c.state == "changed since"]
    text = "Every artefact gave the integers of its model on every input compared."
    if bad:
        text = f"Not all is well: see {', '.join(c.artefact for c in bad)}."
    if not sure:
        text += " Which posterior the certified integer model comes from is not recorded."
    headings = ("Artefact", "Target", "State of the file", "Inputs compared", "Differing", "Bytes")
    rows: list[list[Any]] = [
        [Cell(c.artefact), Cell(c.target), Cell(c.state), *(number(n, ",") for n in (c.compared, c.differing, c.size))]
        for c in certificates
    ]
    table_ = table("Exported artefacts, run and compared with the integer model.", headings, rows, texts=3)
    return [Paragraph(text, f"verdict {'broken' if bad else 'kept'}"), table_]
