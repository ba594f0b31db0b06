"""Ensembles, certificates and exported artefacts out of edited files: an error, the same result, or another meaning."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, edited, outcome
from integer_models import one_layer

from probq import export
from probq.errors import ProbqError
from probq.export import memory
from probq.export.certificate import certify
from probq.integer.ensemble import Ensemble, _digest
from probq.report import certificates

MODEL = one_layer([[3, -5], [1, 2]], [4, -4], 2, 7)
X = np.array([[0.0, 0.0], [3.0, 1.0], [2.0, 9.0]])


def answered(folder: Path) -> Any:
    """What an ensemble predicts; saved again, it is the same."""
    loaded = Ensemble.load(folder)
    again = folder.with_name("again")
    shutil.rmtree(again, ignore_errors=True)
    loaded.save(again)
    assert [m.sha256() for m in Ensemble.load(again).models] == [m.sha256() for m in loaded.models]
    return loaded.classes(X) if loaded.noise is None else loaded.numbers(X)


def test_ensembles(tmp_path: Path) -> None:
    whole, rng = tmp_path / "whole", np.random.default_rng(0)
    Ensemble([MODEL, MODEL], 0.5, {"budget": [1, {"a": 2}], "class axis": 1}).save(whole)
    manifest = json.loads((whole / "ensemble.json").read_text())
    del manifest["sha256"]
    folder, refused = tmp_path / "e", 0
    for number in range(150):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        if number % 3:
            content = edited(manifest, rng)
            (folder / "ensemble.json").write_text(json.dumps({**content, "sha256": _digest(content)}))
        else:
            name = ("ensemble.json", "member-001.safetensors")[rng.integers(2)]
            (folder / name).write_bytes(damaged((whole / name).read_bytes(), rng))
        refused += isinstance(outcome(lambda: answered(folder)), ProbqError)
    assert 100 < refused < 150


def test_certificates(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "m.h"
    MODEL.save(tmp_path / "m")
    path.write_text("a header")
    certificate = certify(MODEL, path, export.Report("c", 3, 0, 0.1))
    whole, refused = certificate.read_bytes(), 0

    def use() -> list[str]:
        return certificates.elements([*certificates.given([certificate], None)], True)

    for number in range(300):
        changed = json.dumps(edited(json.loads(whole), rng)).encode() if number % 2 else damaged(whole, rng)
        certificate.write_bytes(changed)
        refused += isinstance(outcome(use), ProbqError)
    assert 100 < refused < 300


def test_a_certificate_names_a_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "m.h"
    path.parent.mkdir()
    path.write_text("a header")
    certificate = certify(MODEL, path, export.Report("c", 3, 0, 0.1))
    content = json.loads(certificate.read_text())
    for name, state in {"m.h": "unchanged", "..": "not here", "": "not here", "x" * 5000: "cannot be read"}.items():
        certificate.write_text(json.dumps(content | {"artefact": name}))
        assert certificates.read(certificate).state == state


def test_free_information_is_a_dict() -> None:
    for metadata in (5, "a", [[0, 0]]):
        with pytest.raises(ProbqError, match="metadata is a dict"):
            Ensemble([MODEL], metadata=metadata)  # type: ignore[arg-type]


def test_memory(tmp_path: Path) -> None:
    rng, folder, refused = np.random.default_rng(0), tmp_path / "m", 0
    memory.write(MODEL, folder)
    files = sorted(folder.iterdir())
    for number in range(210):
        file = folder / "probq.json" if number % 3 else files[rng.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(json.dumps(edited(json.loads(whole), rng)).encode() if number % 3 else damaged(whole, rng))
        refused += isinstance(outcome(lambda: export.verify(MODEL, folder, X)), ProbqError)
        file.write_bytes(whole)
    assert export.verify(MODEL, folder, X)
    assert 150 < refused < 210
