"""A process that is killed while it fits loses nothing: the next one goes on to the same bits."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import small_checkpoints
from small_checkpoints import call, network, same, tensors

from probq.training.checkpoints.folder import CheckpointFolder

LONGEST = 120.0  # seconds, on a busy machine


def started(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, small_checkpoints.__file__, str(folder), str(out), "1"])


def newest(folder: Path) -> int:
    files = CheckpointFolder(folder).files() if folder.exists() else []
    return int(files[0].stem.split("-")[1]) if files else 0


@pytest.mark.parametrize("seed", [0])
def test_a_killed_process_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Once in the search and once behind it, at moments that chance decides, writing included."""
    folder, out, chance = tmp_path / "run", tmp_path / "out", random.Random(seed)
    for kill, least in ((signal.SIGKILL, 2 + chance.randrange(8)), (signal.SIGTERM, 14 + chance.randrange(12))):
        process, deadline = started(folder, out), time.monotonic() + LONGEST
        while newest(folder) < least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(chance.random() / 100)
        process.send_signal(kill)
        assert process.wait(LONGEST) == -kill
        assert not out.exists()
    assert started(folder, out).wait(LONGEST) == 0
    monkeypatch.setattr("probq.training.refinement.trials.FEWEST", 1)
    whole = network()
    call(whole, None)
    assert same(safetensors.torch.load(out.read_bytes()), tensors(whole))
    assert len(list(folder.iterdir())) == 2
