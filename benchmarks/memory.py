"""What a training step keeps in memory at most, as a ratio to the float step of the same network.

The peak is that of torch's allocator on the CPU (`torch.profiler`, `profile_memory=True`), over one step after two that
warm up: weights, gradients, Adam's averages, the batch, and whatever a step needs. The probq step learns all widths
(ladders of 1, 2, 4 and 8 bits on weights and inputs) under a budget, or tunes the network at decided widths. A network
whose record is there is not measured again.

    python benchmarks/memory.py --out benchmarks/results_memory.jsonl
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from step_networks import resnet20
from step_time import float_steps, probq_steps, tuning_steps
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from probq.testing import lenet5, vgg7

WARM_UP, MEASURED = 2, 1
TARGET = 1.6  # greatest ratio that is aimed at
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet-5": (lenet5, (128, 1, 28, 28)),
    "VGG-7, a quarter": (lambda: vgg7(0.25), (64, 3, 32, 32)),
    "ResNet-20": (resnet20, (32, 3, 32, 32)),
}
WAYS: dict[str, Callable[[nn.Module, Tensor, Tensor], Iterator[Any]]] = {
    "float": float_steps,
    "search": probq_steps,
    "tuning": tuning_steps,
}


def peak(make: Callable[[], Iterator[Any]]) -> int:
    """Return the greatest number of bytes that torch has allocated during the measured steps."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        running = make()
        for _ in range(WARM_UP):
            next(running)
        gc.collect()
        with record_function("measured"):
            for _ in range(MEASURED):
                next(running)
        del running
        gc.collect()  # what is let go while nobody watches would count for the next one
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    span = next(event for event in events if event["name"] == "measured")
    totals = [
        int(event["args"]["Total Allocated"])
        for event in events
        if event["name"] == "[memory]" and span["ts"] <= event["ts"] <= span["ts"] + span["dur"]
    ]
    return max(totals)


def measure(name: str) -> dict[str, Any]:
    """Return the peaks of one network, in bytes."""
    make, shape = NETWORKS[name]
    peaks = {}
    for way, steps in WAYS.items():
        torch.manual_seed(0)
        peaks[way] = peak(lambda steps=steps: steps(make(), torch.rand(shape), torch.arange(shape[0]) % 10))  # type: ignore[misc]
    return {"network": name, "batch": shape[0], "torch": str(torch.__version__), "bytes": peaks}


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each network: the peak of float in MiB, and the ratios of both ways to it."""
    rows = ["| network | float, MiB | widths learned | widths decided | target |", f"|{'---|' * 5}"]
    for run in runs:
        search, tuning = (run["bytes"][way] / run["bytes"]["float"] for way in ("search", "tuning"))
        missed = round(max(search, tuning) - TARGET, 2)
        target = f"at most {TARGET}" + (f" (missed by {missed:.2f})" if missed > 0 else "")
        megabytes = run["bytes"]["float"] / 2**20
        rows.append(
            f"| {run['network']}, batch {run['batch']} | {megabytes:.1f} | {search:.2f} | {tuning:.2f} | {target} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="records, one a line; new ones are added")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = args.out.read_text(encoding="utf-8") if args.out.exists() else ""
    runs = [json.loads(line) for line in text.splitlines()]
    for name in args.network:
        if name not in [run["network"] for run in runs]:
            runs.append(measure(name))
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
