"""Processes that Lightning Fabric has started fit one network here, and take what they learn from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from probq.network.quantized.network_state import network_state, restore_network
from probq.network.quantized.quantized import Quantized
from probq.training.processes.alone import Processes, StepMeans
from probq.training.processes.exchange import take, told
from probq.training.processes.parts import PartOfBatches
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError, sentence

T = TypeVar("T")
ASKED = ("world_size", "global_rank", "device", "strategy", "autocast", "setup_dataloaders")  # of Fabric
STRATEGIES = frozenset({"DDPStrategy", "SingleDeviceStrategy"})
PRECISIONS = frozenset({"32-true", "bf16-mixed"})


def as_processes(fabric: Any) -> Processes:
    """Return the processes of a `Fabric`; one alone for None.

    Raises:
        ProbqError: if it is something else, was not launched, or has a strategy or precision that a fit does not know.
    """
    if fabric is None or isinstance(fabric, Processes):
        return fabric or Processes()
    if not all(hasattr(fabric, name) for name in ASKED):
        raise ProbqError(
            f"fabric is a lightning.Fabric(...), not {fabric!r:.80}; where Lightning is not installed: "
            'pip install "probq[distributed]"'
        )
    names = {kind.__name__ for kind in type(fabric.strategy).__mro__}
    if not names & STRATEGIES:
        raise ProbqError(
            f"a fit knows Fabric's strategy 'ddp' and single devices, not {type(fabric.strategy).__name__}; give "
            "Fabric(strategy='ddp')"
        )
    precision = getattr(getattr(fabric.strategy, "precision", None), "precision", "32-true")
    if precision not in PRECISIONS:
        raise ProbqError(
            f"a fit knows Fabric's precisions '32-true' and 'bf16-mixed', not {precision!r}; parameters stay float32"
        )
    if fabric.world_size > 1 and not dist.is_initialized():
        raise ProbqError("Fabric has not started its processes; call fabric.launch() first")
    return Several(fabric) if fabric.world_size > 1 else OnDevice(fabric)


class OnDevice(Processes):
    """This is one process on a device and in a precision that Fabric has chosen.

    Args:
        fabric: a `Fabric` that was launched.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric

    def take(self, q: Quantized) -> None:
        """Move a network to the device."""
        q.to(self.fabric.device)

    def precision(self) -> AbstractContextManager[Any]:
        """Compute the network within the context in Fabric's precision."""
        context: AbstractContextManager[Any] = self.fabric.autocast()
        return context


class Several(OnDevice):
    """These are several processes, each with a part of the data.

    Random numbers are the same in all of them, but within `apart`; there each has those of a seed of its own, which is
    drawn with the numbers that all share. So one random state stands for all of them in a checkpoint.

    Args:
        fabric: a `Fabric` that was launched.
    """

    def __init__(self, fabric: Any) -> None:
        super().__init__(fabric)
        self.count, self.rank = fabric.world_size, fabric.global_rank
        self._common: int | None = None

    def take(self, q: Quantized) -> None:
        """Move a network to the device, once all have the same one."""
        super().take(q)
        own = {name: tuple(tensor.shape) for name, tensor in q.state_dict().items()}
        if any(other != own for other in self._all(own)):
            raise ProbqError("the processes have different networks or plans; quantize the same one in each of them")
        self.align(q)

    def batches(self, batches: Iterable[Any], device: torch.device, name: str) -> Batches:
        """Return this process's part of the data: of a `DataLoader` the one that Fabric gives it.

        Raises:
            ProbqError: in all processes, if they have different numbers of batches.
        """
        if isinstance(batches, Batches):
            return batches
        if isinstance(batches, DataLoader):
            batches = self.fabric.setup_dataloaders(batches, move_to_device=False)
        data = self.together(lambda: PartOfBatches(batches, device, name, self.alike))
        sizes = self._all((len(data), data.size))
        if len({number for number, _ in sizes}) > 1:
            each = ", ".join(f"process {rank} has {number}" for rank, (number, _) in enumerate(sizes))
            raise ProbqError(
                f"the processes have different numbers of batches of the {name}: {each}. Give each as many, or all of "
                "them one DataLoader, which Fabric shares out"
            )
        if not data.is_shared_out:
            data.of_all = sum(size for _, size in sizes)
        return data

    def seed(self, seed: int | None) -> int | None:
        """Return the seed of the first process, drawn where it has none."""
        return self.agree(int(torch.randint(2**31, ())) if seed is None else seed)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Draw random numbers of this process's own within the context; outside, all draw the same."""
        seeds = torch.randint(2**32, (self.count + 1,)).tolist()
        before, self._common = self._common, seeds[-1]
        try:
            with self._seeded(seeds[self.rank]):
                yield
        finally:
            self._common = before

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Draw the same random numbers in all processes within the context, also inside of `apart`."""
        if self._common is None:
            yield
            return
        seed, self._common = self._common, self._common + 1
        with self._seeded(seed):
            yield

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        device = self.fabric.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def together(self, work: Callable[[], T]) -> T:
        """Do work that each process does alone; what one raises ends it in all of them."""
        result, failure = _tried(work)
        said = self._all(None if failure is None else sentence(failure))
        if failure is not None:
            raise failure
        for rank, text in enumerate(said):
            if text is not None:
                raise ProbqError(f"process {rank} of {self.count} stopped: {text}")
        return result  # type: ignore[return-value]

    def first(self, work: Callable[[], T]) -> T:
        """Return what the first process makes of some work, or raise what it raises."""
        result, failure = _tried(work) if self.is_first else (None, None)
        said, result = self.agree((None if failure is None else sentence(failure), result))
        if failure is not None:
            raise failure
        if said is not None:
            raise ProbqError(f"process 0 of {self.count} stopped: {said}")
        return result  # type: ignore[return-value]

    def agree(self, value: T) -> T:
        """Return the first process's value."""
        held = [value if self.is_first else None]
        with self._connected():
            dist.broadcast_object_list(held, 0)
        return held[0]  # type: ignore[return-value]

    def align(self, q: Quantized) -> None:
        """Give the networks of all processes the state of the first one's, and the same random state."""
        state = network_state(q) if self.is_first else {}
        if self.is_first:
            state = {**state, "tensors": {name: tensor.cpu() for name, tensor in state["tensors"].items()}}
        state, random = self.agree((state, torch.get_rng_state()))
        if not self.is_first:
            restore_network(q, state)
            torch.set_rng_state(random)

    def exchange(self, means: StepMeans, moved: Sequence[Tensor], statistics: Sequence[Tensor]) -> StepMeans:
        """Make gradients and means those of the examples of all processes.

        Raises:
            ProbqError: if another process stopped.
        """
        found = self._sum(means, moved, statistics)
        if found.stopped:
            raise ProbqError(
                f"process {found.stopped[0]} of {self.count} stopped, and says why; the others end with it"
            )
        return found.means

    def stop(self, error: Exception, moved: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Tell the others, who wait for what `exchange` would have given them, that this process stops."""
        try:
            self._sum(None, moved, statistics)
        except ProbqError as lost:
            error.add_note(str(lost))

    def _sum(self, means: StepMeans | None, moved: Sequence[Tensor], statistics: Sequence[Tensor]) -> Any:
        total = told(means, moved, statistics, self.rank, self.count)
        with self._connected():
            dist.all_reduce(total)
        return take(total, moved, statistics, self.count)

    def _all(self, value: T) -> list[T]:
        """Return the values of all processes."""
        held: list[Any] = [None] * self.count
        with self._connected():
            dist.all_gather_object(held, value)
        return held

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Say within the context what it means that processes do not answer."""
        try:
            yield
        except RuntimeError as error:
            raise ProbqError(
                f"process {self.rank} of {self.count} has lost the others: one was killed, or cannot be reached. Start "
                "all of them again; with a folder as checkpoint, the same call goes on where it stopped. "
                f"({sentence(error):.160})"
            ) from error


def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error
