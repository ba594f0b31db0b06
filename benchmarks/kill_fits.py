"""Fits that are killed at random moments and started again: does every one come to the same bits?

A small fit with all phases (search, measured networks, trials, tuning) and all training aids (a teacher that learns,
averages, steps of two batches, clipping, an early end) writes a checkpoint after every step. Each of
the moments is drawn uniformly over the time that such a fit takes; in every third fit, it is the next one after that at
which a checkpoint is being written. There its process gets SIGKILL, and the same call is made again until it ends. Then
all tensors and the history are compared with those of the fit that nobody killed.

    python benchmarks/kill_fits.py --moments 30 --out benchmarks/results_kill_fits.json

The record says for each moment in which phase the newest checkpoint was, whether one was just being written, and
whether tensors and history were the same.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from protocol import versions
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq.training.checkpoints.folder import CheckpointFolder, read
from probq.training.refinement import trials

LONGEST = 600.0  # seconds of one process


def fit(folder: str) -> tuple[probq.Quantized, probq.History]:
    """The call: batch normalisation, dropout, a shuffled loader, trials of a few steps."""
    trials.FEWEST = 1  # type: ignore[misc]
    torch.set_num_threads(1)
    x = torch.rand(256, 8, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 4).long() + (x[:, 0] > 0.5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)).eval()
    q = probq.quantize(net, x)
    batches = DataLoader(TensorDataset(x[:192], y[:192]), 32, shuffle=True)
    held_out = DataLoader(TensorDataset(x[192:], y[192:]), 32)
    budget = probq.Budget(percent=2)
    torch.manual_seed(0)
    teacher = probq.distillation.online(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)))
    aids = {"teacher": teacher, "average": 0.9, "accumulate": 2, "clip": 1.0, "patience": 8}
    how: dict[str, Any] = {"search": 0.5, "evaluations": 40, "seed": 0, "every": 1, "progress": False, **aids}
    return q, probq.fit(q, batches, budget, 40, validation=held_out, checkpoint=folder, **how)


def make(folder: str, out: str) -> None:
    """Make the call in this process, and write what it comes to."""
    q, history = fit(folder)
    found = {name: tensor.double().tolist() for name, tensor in q.state_dict().items()}
    Path(out).write_text(json.dumps([found, history.to_frame().to_dict("list"), history.validation]))


def started(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    """The same call in another process."""
    return subprocess.Popen([sys.executable, "-W", "ignore", __file__, "--call", str(folder), str(out)])


def began(folder: Path) -> float:
    """Wait until a process has made its folder, and return the time."""
    while not folder.exists():
        time.sleep(0.001)
    return time.monotonic()


def writes(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(name.startswith(".probq-") for name in os.listdir(folder))


def killed(folder: Path, out: Path, after: float, in_a_write: bool) -> dict[str, Any] | None:
    """Kill a fit some seconds after it began, then make the same call again; None if it had ended before."""
    process = started(folder, out)
    moment = began(folder) + after
    while process.poll() is None and (time.monotonic() < moment or (in_a_write and not writes(folder))):
        pass
    process.send_signal(signal.SIGKILL)
    if process.wait(LONGEST) == 0:
        return None
    writing = writes(folder)
    kept = CheckpointFolder(folder)
    state = dict(read(kept.files()[0])[0]["state"]["dict"])["course"]["dict"] if kept.files() else []
    phase = dict(state).get("phase", "before the first step")
    if started(folder, out).wait(LONGEST):
        raise SystemExit(f"the same call failed after {after:.2f} s; see {folder}")
    return {"seconds": round(after, 3), "phase": phase, "writing": writing}


def main() -> None:
    """Kill as often as is asked for, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="the record, JSON")
    parser.add_argument("--call", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        make(*args.call)
        return
    chance, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        process = started(place / "whole", place / "whole.json")
        begin = began(place / "whole")
        if process.wait(LONGEST):
            raise SystemExit("the fit itself failed")
        lasts, whole = time.monotonic() - begin, (place / "whole.json").read_text()
        for number in itertools.count():
            out = place / f"{number}.json"
            row = killed(place / str(number), out, chance.uniform(0, lasts), in_a_write=number % 3 == 2)
            if row is not None:
                rows.append({**row, "same": out.read_text() == whole})
                print(rows[-1], flush=True)
            if len(rows) == args.moments:
                break
    summary = {
        "moments": len(rows),
        "same": sum(row["same"] for row in rows),
        "while writing": sum(row["writing"] for row in rows),
        "phases": dict(collections.Counter(row["phase"] for row in rows)),
        "seconds of a fit": round(lasts, 1),
    }
    print(summary)
    if args.out is not None:
        args.out.write_text(json.dumps({"summary": summary, "versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
