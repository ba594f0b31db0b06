"""Two processes fit one network: the same state in both after every step, and a sentence for whatever goes wrong."""

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from small_checkpoints import X, Y
from two_processes import fixed, started

import probq

pytest.importorskip("lightning")
LONGEST = 300.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written what they found, once for all workers of pytest."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ended").exists():
            ended = [process.wait(LONGEST) for process in started(place)]
            (place / "ended").write_text(json.dumps(ended))
    assert json.loads((place / "ended").read_text()) == [0, -signal.SIGKILL]
    return place


def found(folder: Path, scene: Any) -> list[dict[str, Any]]:
    texts = [(folder / f"{rank}.json").read_text() for rank in range(2)]
    return [json.loads(text).get(scene.__name__, {}) for text in texts]


def test_both_have_the_same_state_after_every_step(folder: Path) -> None:
    a, b = found(folder, two_processes.every_step)
    assert a["states"] == b["states"]
    assert len({state[0] for state in a["states"]}) == len(a["states"]) == 3 * 2  # 48 examples, 16 a batch
    assert a["widths"] == b["widths"]
    assert len({str(widths) for widths in a["widths"]}) > 1
    assert not set(a["random"]) & set(b["random"])


def test_two_halves_are_one_batch(folder: Path) -> None:
    a, b = found(folder, two_processes.halves)
    assert a == b
    alone, whole = fixed(), [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]
    history = probq.fit(alone, whole, None, 2, seed=0, progress=False)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(torch.tensor(a["tensors"][name], dtype=tensor.dtype), tensor, rtol=1e-4, atol=1e-6)
    assert a["losses"] == pytest.approx([step.loss for step in history.steps], rel=1e-5)


def test_a_fit_whose_data_failed_in_one_process_goes_on_in_both(folder: Path) -> None:
    a, b = found(folder, two_processes.resumed)
    assert a["said"].startswith("ProbqError: process 1 of 2 stopped")
    assert b["said"].startswith("OSError: the disk does not answer")
    assert "the same call goes on from there" in a["said"]
    assert a["same"]
    assert b["same"]
    assert a["digest"] == b["digest"]
    assert len(a["files"]) == 2
    assert not (folder / "nowhere").exists()


def test_a_loss_that_is_not_finite_ends_both(folder: Path) -> None:
    a, b = found(folder, two_processes.not_finite)
    assert a == b
    assert "the loss became nan in process 1 at step 1; the network keeps its state of step 0" in a["said"]


def test_different_data_and_networks_are_told_apart(folder: Path) -> None:
    for said in found(folder, two_processes.lengths):
        assert "process 0 has 4, process 1 has 5. Give each as many" in said["said"]
    for said in found(folder, two_processes.networks):
        assert "different networks or plans" in said["said"]


def test_a_killed_process_ends_the_other_one(folder: Path) -> None:
    a, _ = found(folder, two_processes.killed)
    assert "process 0 of 2 has lost the others: one was killed" in a["said"]
