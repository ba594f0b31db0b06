"""The memory that a training step takes is estimated before the first one, from two small batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.preparation import usual_likelihood
from probq.training.svi.objective import Objective
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream
from probq.utils.structures.tensors import arguments, some_rows, tensors_in

FEW, MORE = 2, 4  # examples; normalisation needs two
KEPT_PER_MAC = 24  # bytes that a layer keeps for each multiplication at most: six copies of its output in float32
GIB = 2.0**30


class StepMemory(NamedTuple):
    """This is what a step of a fit keeps in memory at its peak, in bytes.

    Attributes:
        parameters: of parameters and statistics, and of the last good copy of both.
        optimizer: of gradients and Adam's two averages.
        example: what the backward pass needs of one example.
        batch: what it needs of the batch.
    """

    parameters: int
    optimizer: int
    example: int
    batch: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.parameters + self.optimizer + self.batch

    def __str__(self) -> str:
        return (
            f"{self.total / GIB:.3g} GiB: parameters {self.parameters / GIB:.3g}, gradients and optimizer "
            f"{self.optimizer / GIB:.3g}, a batch {self.batch / GIB:.3g}"
        )


def step_memory(q: Quantized, batch: Any) -> StepMemory:
    """Return what a step of a search takes, without taking it.

    The search takes more than the tuning. What autograd keeps for the backward pass is counted for 2 and for 4 of the
    examples, and is linear in their number. Left out are what single operations need besides, averages of parameters,
    a teacher, and what torch and a driver need themselves.

    Args:
        q: from `quantize`; left as it is.
        batch: `(input, target)`.

    Raises:
        ProbqError: if the batch has fewer than 4 examples.

    Example:
        >>> import probq
        >>> q = probq.quantize(torch.nn.Linear(64, 10), torch.rand(8, 64))
        >>> memory = step_memory(q, (torch.rand(256, 64), torch.arange(256) % 10))
        >>> memory.parameters > 2 * 4 * 64 * 10, memory.batch > 256 * 64 * 4
        (True, True)
    """
    check_posterior(q, "step_memory")
    x, y = next(iter(Batches([batch], q.device)))
    if len(y) < MORE:
        raise ProbqError(f"step_memory takes a batch of {MORE} examples or more, not {len(y)}")
    own = copy.deepcopy(q)
    with Stream(0).training():
        if own.likelihood is None:
            own.likelihood = usual_likelihood(own, x, y)
        own.train()
        few, more = (_kept(own, some_rows(arguments(x), 0, rows), y[:rows]) for rows in (FEW, MORE))
    example = (more - few) // (MORE - FEW)
    given = sum(tensor.nbytes for tensor in tensors_in((x, y)))
    state = sum(tensor.nbytes for tensor in (*own.parameters(), *own.buffers()))
    moved = sum(parameter.nbytes for parameter in own.parameters() if parameter.requires_grad)
    return StepMemory(2 * state, 3 * moved, example, few + example * (len(y) - FEW) + given)


def _kept(q: Quantized, x: tuple[Any, ...], y: Any) -> int:
    """Return the bytes that autograd keeps of one draw, besides parameters and the batch."""
    held = {tensor.untyped_storage().data_ptr() for tensor in (*q.parameters(), *q.buffers(), *tensors_in((x, y)))}
    found: dict[int, Any] = {}  # storages, which must live until all are counted

    def pack(tensor: Tensor) -> None:  # a tensor given back would hold its own graph, which nothing frees then
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            found[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        Objective(q, len(y), 1)(x, y)
    return sum(storage.nbytes() for storage in found.values())


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a device, or None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    found = [_free_of_machine(), _free_of_group()] if device.type == "cpu" else []
    return min((free for free in found if free is not None), default=None)


def _free_of_machine(path: str = "/proc/meminfo") -> int | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_group(folder: str = "/sys/fs/cgroup") -> int | None:
    """Return what a container leaves, or None where there is none or it has no limit."""
    try:
        most, now = (Path(folder, f"memory.{name}").read_text(encoding="utf-8").strip() for name in ("max", "current"))
    except OSError:
        return None
    return int(most) - int(now) if most.isdecimal() and now.isdecimal() else None


def check_memory(q: Quantized, data: Batches) -> None:
    """Raise where a step would not fit into memory; networks that surely fit are not looked at.

    Raises:
        ProbqError: with what a step takes, what is free, and how many examples a batch may have.
    """
    free, rows = free_memory(q.device), data.size / len(data)
    state = sum(tensor.nbytes for tensor in (*q.parameters(), *q.buffers()))
    if free is None or 5 * state + KEPT_PER_MAC * rows * sum(layer.macs for layer in q.layers) < free:
        return
    with Stream(0).training():
        x, y = next(iter(data))
    if len(y) < MORE:
        return
    memory = step_memory(q, (x, y))
    if memory.total <= free:
        return
    fit = (free - memory.parameters - memory.optimizer) // max(memory.example, 1)
    advice = "use a device with more memory"
    if fit >= 1:
        advice = f"give batches of at most {fit} examples; accumulate={-(-len(y) // fit)} adds up as many as now"
    raise ProbqError(f"a step needs about {memory}; {free / GIB:.3g} GiB are free on {q.device}: {advice}")
