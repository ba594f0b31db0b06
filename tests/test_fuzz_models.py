"""Integer models out of edited files: a clear error, the same result, or an honest other meaning; never another end."""

from pathlib import Path

import numpy as np
import pytest
from fuzzing import damaged, edited, forge, outcome, read
from random_models import seeded

from probq.cli import integer_text
from probq.errors import ProbqError
from probq.export import c
from probq.integer import IntegerModel


def used(path: Path) -> None:
    """Loads, shows, evaluates and exports what the file holds."""
    model = IntegerModel.load(path)
    integer_text(path)
    model(np.zeros((1, *model.input.attributes["shape"]), np.int64))
    c.header(model, "m")


@pytest.mark.parametrize("seed", range(8))
def test_edits_with_right_hashes(seed: int, tmp_path: Path) -> None:
    path, rng = tmp_path / "m", np.random.default_rng(seed)
    seeded(seed).save(path)
    blobs, manifest = read(path)
    refused = 0
    for _ in range(125):
        forge(path, blobs, edited(manifest, rng))
        refused += isinstance(outcome(lambda: used(path)), ProbqError)
    assert refused > 0


def test_damaged_bytes(tmp_path: Path) -> None:
    path, rng = tmp_path / "m", np.random.default_rng(0)
    seeded(3).save(path)
    whole = path.read_bytes()
    for _ in range(300):
        path.write_bytes(content := damaged(whole, rng))
        assert content == whole or isinstance(outcome(lambda: used(path)), ProbqError)
