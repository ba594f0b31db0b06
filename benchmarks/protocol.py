"""What the accuracy benchmarks share: training that can be continued, accuracies, and records, one JSON line a run."""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from tqdm import tqdm

import probq

BATCH, HELD_OUT = 128, 5000
ESTIMATORS = ("MeanGradient", "ModeForward", "SecondOrder", "StraightThrough")  # for Plan(estimator=...)
CACHE = Path(__file__).parent / "cache"
UNFINISHED = 75  # exit status of a run that stopped at its time limit; the same command continues it


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of right classes in percent."""
    return 100 * float((outputs.argmax(1) == targets).float().mean())


@torch.no_grad()
def in_parts(function: Callable[[Any], Any], x: Tensor) -> Tensor:
    """Outputs of a function of images, a few at a time."""
    return torch.cat([torch.as_tensor(function(part)) for part in x.split(1000)])


def autocast(device: str = "cpu") -> torch.autocast:
    """Half the memory traffic in training."""
    return torch.autocast(device, torch.bfloat16)


def train(
    net: nn.Module,
    batches: Any,
    epochs: int,
    checkpoint: Path | None = None,
    deadline: float = math.inf,
    smoothing: float = 0,
) -> bool:
    """Train with Adam from 1e-3 and a cosine schedule over all steps; what is kept is the state after the last one.

    Args:
        net: trained in place, and left in evaluation mode once all epochs are done.
        batches: `(input, target)`, with a length.
        epochs: passes over the data.
        checkpoint: file that holds everything the next epoch depends on, written after each one and read at the start.
        deadline: of `time.monotonic()`; no epoch but the first of this call starts after it.
        smoothing: share of each label spread over all classes.

    Returns:
        Whether all epochs are done.
    """
    device = next(net.parameters()).device
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    first = _continued(checkpoint, net, optimizer, cosine)
    for epoch in range(first, epochs):
        if epoch > first and time.monotonic() >= deadline:
            return False
        net.train()
        for x, y in batches:
            optimizer.zero_grad()
            with autocast(device.type):
                output = net(x.to(device))
            nn.functional.cross_entropy(output.float(), y.to(device), label_smoothing=smoothing).backward()
            optimizer.step()
            cosine.step()
        if checkpoint is not None:
            state: dict[str, Any] = {"epochs": epoch + 1, "random": torch.get_rng_state(), "net": net.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "cosine": cosine.state_dict()}
            write(checkpoint, partial(torch.save, state))
    net.eval()
    return True


def _continued(checkpoint: Path | None, net: nn.Module, optimizer: Any, cosine: Any) -> int:
    """Epochs that are done, with everything in the state after them."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location=next(net.parameters()).device)
    for part, name in ((net, "net"), (optimizer, "optimizer"), (cosine, "cosine")):
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"].cpu())
    return int(state["epochs"])


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save(part)
    part.replace(path)


def integer_outputs(q: probq.Quantized, model: probq.IntegerModel, x: Tensor) -> tuple[Tensor, int]:
    """Outputs of the integer model, and how many of its output numbers differ from the mode of `q`."""
    integers = in_parts(lambda part: model(part.numpy()), x)
    outputs = integers.double() * model.output_scale
    return outputs, int((outputs.float() != in_parts(q, x).float()).sum())


def exported(model: probq.IntegerModel, targets: Iterable[str], x: Tensor) -> dict[str, int]:
    """For each export target, how many images give an artefact's integers other than the model's."""
    endings = {"c": ".h", "onnx": ".onnx"}
    with tempfile.TemporaryDirectory() as folder:
        differing = {}
        for target in targets:
            path = Path(folder, f"network{endings[target]}")
            getattr(probq.export, target).write(model, path)
            differing[target] = probq.export.verify(model, path, x.numpy()).differing
    return differing


def versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def machine() -> str:
    """The processor and the number of threads, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} thread(s)"


def found(out: Path | None, key: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the run with this key, if the results already hold it."""
    records = read(out) if out is not None and out.exists() else []
    return next((r for r in records if all(r.get(k) == v for k, v in key.items())), None)


def once(args: Any, key: Callable[[Any], dict[str, Any]], run: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The record of a run with the threads asked for: the one that is there, or that of running it now."""
    torch.set_num_threads(args.threads)
    row = found(args.out, key(args))
    if row is None:
        row = run(args)
        append(args.out, row)
    return row


def completed(
    out: Path, runs: Iterable[Any], kind: Callable[[dict[str, Any]], Any], one: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """All records of a results file, once those of the runs that it lacks are made, on one thread.

    Args:
        out: the results file.
        runs: arguments of `one`, a tuple for each record.
        kind: which run a record is of.
        one: makes a record.
    """
    torch.set_num_threads(1)
    records = read(out) if out.exists() else []
    there = {kind(record) for record in records}
    for run in tqdm([run for run in runs if run not in there]):
        records.append(one(*run))
        append(out, records[-1])
    return records


def read(out: Path) -> list[dict[str, Any]]:
    """All records of a results file."""
    return [json.loads(line) for line in out.read_text().splitlines() if line.strip()]


def append(out: Path | None, row: dict[str, Any]) -> None:
    """Add a record to a results file."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
