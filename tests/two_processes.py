"""What two processes find when they fit networks together; `python tests/two_processes.py FOLDER` is one of them.

`torchrun` would set the environment that `started` sets. Each process writes `FOLDER/RANK.json`, one entry for each of
the functions below.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from small_checkpoints import X, Y, call, network, same, shuffled, tensors
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import Budget
from probq.training.refinement import trials
from probq.training.svi.elbo.negative_elbo import NegativeElbo
from probq.training.svi.elbo.width_laws import WidthLaws

COUNT = 2
HALVES = [(X[k : k + 8], Y[k : k + 8]) for k in range(0, 48, 8)]


def started(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "tests", "OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}
    own = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(COUNT)]
    environments = [{**os.environ, **{name: str(value) for name, value in each.items()}} for each in own]
    return [subprocess.Popen([sys.executable, __file__, str(folder)], env=each) for each in environments]


def digest(q: probq.Quantized) -> str:
    """All parameters and buffers as text, to the last bit."""
    import hashlib

    parts = [name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(tensors(q).items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def told(function: Callable[[], Any]) -> str:
    """What a call says that fails."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}" + "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    return "nothing"


def every_step(fabric: Any, folder: Path) -> dict[str, Any]:
    """A fit with normalisation, dropout, drawn codes and a teacher that learns: the state after each step."""
    q, drawn, random = network(seed=fabric.global_rank), [], []
    draw, output = WidthLaws.draw, NegativeElbo._output

    def recorded_widths(laws: WidthLaws) -> Any:
        found = draw(laws)
        drawn.append(list(found.rungs.values()))
        return found

    def recorded_random(elbo: NegativeElbo, *args: Any) -> Any:
        random.append(float(torch.get_rng_state().double().sum()))  # which draws codes and dropout
        return output(elbo, *args)

    WidthLaws.draw, NegativeElbo._output = recorded_widths, recorded_random  # type: ignore[method-assign]
    torch.manual_seed(fabric.global_rank)
    teacher = probq.distillation.online(torch.nn.Linear(4, 3), rate=1e-2)
    options = {"fabric": fabric, "rounding": False, "temperature": 0.5, "teacher": teacher, "seed": 3, "search": 0.7}
    try:
        running = probq.steps(q, shuffled(), Budget(percent=20), 3, **options)
        states = [(digest(q), step.loss, step.multiplier, step.percent) for step in running]
    finally:
        WidthLaws.draw, NegativeElbo._output = draw, output  # type: ignore[method-assign]
    return {"states": states, "widths": drawn, "random": random}


def halves(fabric: Any, folder: Path) -> dict[str, Any]:
    """Nothing is drawn: each process has one half of every batch of 16."""
    q = fixed()
    own = HALVES[fabric.global_rank :: COUNT]
    history = probq.fit(q, own, None, 2, fabric=fabric, seed=0, progress=False)
    return {"tensors": {n: t.tolist() for n, t in tensors(q).items()}, "losses": [step.loss for step in history.steps]}


def fixed() -> probq.Quantized:
    """A network of fixed widths without normalisation and dropout, whose scales are set."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    q = probq.quantize(net, X, probq.uniform(4, 4))
    next(probq.steps(q, [(X, Y)], epochs=1, seed=0))
    return q


class Unreadable(TensorDataset):
    """Examples of which one cannot be read."""

    left = 10**6

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if not self.left:
            raise OSError("the disk does not answer")
        return super().__getitem__(index)


def resumed(fabric: Any, folder: Path) -> dict[str, Any]:
    """A fit with all phases, whose data fails in one process, then made again; beside one that was left alone."""
    trials.FEWEST = 1  # type: ignore[misc]
    whole, q = network(), network()
    call(whole, None, fabric=fabric)
    own, data = {"fabric": fabric, "every": 2}, Unreadable(X[:48], Y[:48])
    data.left = 300 if fabric.global_rank else data.left
    place = folder / "run" if not fabric.global_rank else folder / "nowhere"
    said = told(lambda: call(q, place, DataLoader(data, 16, shuffle=True), **own))
    q = network()
    call(q, place, **own)
    files = sorted(path.name for path in folder.glob("*/checkpoint-*"))
    return {"said": said, "same": same(tensors(q), tensors(whole)), "files": files, "digest": digest(q)}


def not_finite(fabric: Any, folder: Path) -> dict[str, Any]:
    """A loss that is not finite in the second process, at the second step."""
    q, own = fixed(), HALVES[fabric.global_rank :: COUNT]
    log_prob, calls = torch.distributions.Categorical.log_prob, []

    def spoiled(law: Any, value: Any) -> Any:
        calls.append(value)
        return log_prob(law, value) * (torch.nan if fabric.global_rank and len(calls) == 2 else 1.0)

    torch.distributions.Categorical.log_prob = spoiled  # type: ignore[method-assign]
    try:
        said = told(lambda: probq.fit(q, own, None, 2, fabric=fabric, seed=0, progress=False))
    finally:
        torch.distributions.Categorical.log_prob = log_prob  # type: ignore[method-assign]
    return {"said": said, "digest": digest(q)}


def lengths(fabric: Any, folder: Path) -> dict[str, Any]:
    """Data of different lengths."""
    own = HALVES[: 4 + fabric.global_rank]
    return {"said": told(lambda: probq.fit(fixed(), own, fabric=fabric, progress=False))}


def networks(fabric: Any, folder: Path) -> dict[str, Any]:
    """Networks of different shapes."""
    q = network(width=6 + fabric.global_rank)
    return {"said": told(lambda: probq.fit(q, shuffled(), fabric=fabric, progress=False))}


def killed(fabric: Any, folder: Path) -> dict[str, Any]:
    """The second process is killed in the second epoch."""

    def batches() -> Iterator[Any]:
        batches.passes += 1  # type: ignore[attr-defined]
        if fabric.global_rank and batches.passes > 3:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        yield from HALVES[fabric.global_rank :: COUNT]

    class Data:
        __iter__ = staticmethod(batches)

    batches.passes = 0  # type: ignore[attr-defined]
    return {"said": told(lambda: probq.fit(fixed(), Data(), None, 4, fabric=fabric, progress=False))}  # type: ignore[arg-type]


SCENES = (every_step, halves, resumed, not_finite, lengths, networks, killed)


def main() -> None:
    """Play all scenes as one of the processes."""
    from lightning.fabric import Fabric

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=COUNT, strategy="ddp")
    fabric.launch()
    found, folder = {}, Path(sys.argv[1])
    for scene in SCENES:
        found[scene.__name__] = scene(fabric, folder)
        (folder / f"{fabric.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
