"""What two formats share: a manifest is read or refused in a sentence, and equal ones give equal text."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from probq.utils.errors import ProbqError
from probq.utils.manifest import FileFormat, file_kind, manifest_text

FORMAT = FileFormat("probq.test", 3, "Test.save", "make it again", (("probq.other", "it is the other one"),))
GOOD = {"format": "probq.test", "version": 3, "content": [1, 2.5]}


def saved(path: Path, manifest: str | None) -> Path:
    save_file({"x": np.zeros(2)}, path, None if manifest is None else {"probq": manifest})
    return path


def test_a_manifest_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "f", json.dumps(GOOD))
    with FORMAT.opened(path, "numpy") as file:
        assert FORMAT.manifest(file.metadata()) == GOOD
        assert file.get_tensor("x").tolist() == [0, 0]
    assert file_kind(path) == "probq.test"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "cannot be loaded: it is a safetensors file, but probq did not write it; give one that Test.save wrote"),
        ("{", r"cannot be loaded: its manifest is not JSON \(.*\); make it again"),
        ("[" * 100_000, r"its manifest is not JSON"),
        ("[]", "its format is None, not 'probq.test'; give a file that Test.save wrote"),
        ('{"format": "probq.other"}', "cannot be loaded: it is the other one"),
        ('{"format": "probq.test", "version": 4}', "its version is 4, this probq reads 3; update probq"),
    ],
)
def test_what_is_refused_says_why(manifest: str | None, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "f", manifest)
    with pytest.raises(ProbqError, match=message), FORMAT.opened(path, "numpy") as file:
        FORMAT.manifest(file.metadata() or {})


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    for name, message in (("none", "there is no file"), ("text", "is not a safetensors file"), ("", "is a folder")):
        with pytest.raises(ProbqError, match=message), FORMAT.opened(tmp_path / name, "numpy"):
            pass
        with pytest.raises(ProbqError, match=message):
            file_kind(tmp_path / name)


def test_constants_are_the_readers_choice() -> None:
    metadata = {"probq": '{"format": "probq.test", "version": 3, "x": NaN}'}
    assert FORMAT.manifest(metadata)["x"] != FORMAT.manifest(metadata)["x"]
    assert FORMAT.manifest(metadata, parse_constant=str)["x"] == "NaN"


def test_equal_manifests_give_equal_text() -> None:
    assert manifest_text({"b": 1, "a": [1, 2]}) == manifest_text({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        manifest_text({"a": float("nan")}, allow_nan=False)
