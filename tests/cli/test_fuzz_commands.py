"""The command line on damaged files of every kind: its exit status, and one line on stderr where it is 2."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import damaged, within
from integer_models import one_layer
from torch import nn

import probq
from probq import export
from probq.cli.command_line import main

MODEL = one_layer([[3, -5], [1, 2]], [4, -4], 2, 7)
COMMANDS = {
    "m.safetensors": ("show {}", "report {} --out page.html", "export {} --to c --out out", "verify {} m.memory"),
    "q.safetensors": ("show {}", "report {} --out page.html"),
    "m.h.json": ("report m.safetensors --out page.html", "report m.safetensors --out page.html --certificate {}"),
    "p.npz": ("report q.safetensors --out page.html --predictions {}",),
    "m.onnx": ("verify m.safetensors {} --inputs 3",),
    "m.memory/probq.json": ("verify m.safetensors m.memory --inputs 3",),
    "e/ensemble.json": ("show e", "show {}", "export e --to c --out out", "verify e m.h"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of every kind, in the folder where the commands run."""
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    MODEL.save("m.safetensors")
    probq.quantize(nn.Sequential(nn.Linear(2, 2)).eval(), torch.rand(4, 2)).save("q.safetensors")
    export.c.write(MODEL, "m.h")
    export.certify(MODEL, "m.h", export.Report("c", 2, 0, 0.1))
    export.onnx.write(MODEL, "m.onnx")
    export.memory.write(MODEL, "m.memory")
    np.savez("p.npz", predictions=np.eye(2), targets=np.arange(2))
    probq.Ensemble([MODEL]).save("e")
    return tmp_path


@pytest.mark.filterwarnings("ignore::UserWarning")  # of posteriors that were never fitted
@pytest.mark.parametrize("file", COMMANDS)
def test_damaged_files(file: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, whole, found = np.random.default_rng(0), (folder / file).read_bytes(), set()
    for number in range(12):
        (folder / file).write_bytes(damaged(whole, rng) if number else b"")
        for command in COMMANDS[file]:
            shutil.rmtree(folder / "out", ignore_errors=True)
            capsys.readouterr()
            with within(20):
                status = main(command.format(file).split())
            written = capsys.readouterr().err
            assert status in (0, 1, 2)
            assert status != 2 or (written.startswith("probq: ") and written.count("\n") == 1), written
            assert len(written) < 3000
            found.add(status)
    assert 2 in found
