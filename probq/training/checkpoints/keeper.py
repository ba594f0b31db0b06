"""A keeper writes the checkpoints of one fit, and finds the one that the same call goes on from."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from probq.network.quantized.quantized import Quantized
from probq.training.checkpoints.call import check_same, describe_network
from probq.training.checkpoints.entries import from_entry, to_entry
from probq.training.checkpoints.folder import CheckpointFolder
from probq.training.checkpoints.records import steps_from_columns, steps_to_columns
from probq.training.processes.alone import Processes
from probq.training.svi.course import Course
from probq.training.svi.early_stopping import EarlyStopping
from probq.training.svi.history import History
from probq.utils.errors import ProbqError
from probq.utils.version import probq_version

SHARE = 20  # measurements take so many times as long as the checkpoints between them


class Keeper:
    """A keeper belongs to one call of `fit`.

    Args:
        folder: of the checkpoints.
        every: number of steps between them.
        q: the network that is fitted, as the call has it.
        call: what else decides the fit, from `describe_call`.
        processes: of the fit; the first one reads and writes for all of them.

    Raises:
        ProbqError: if the folder holds checkpoints of another fit, or none that can be read, or another fit is writing
            to it.
    """

    def __init__(
        self, folder: CheckpointFolder, every: int, q: Quantized, call: Mapping[str, str], processes: Processes
    ) -> None:
        self.folder, self.every, self.history, self.processes = folder, every, History(), processes
        place = str(folder.path.resolve())
        if q.began is None or q.began[0] != place:
            q.began = (place, describe_network(q))
        self.call = {**call, **q.began[1], "the number of processes": str(processes.count)}
        self.versions = {"probq": probq_version(), "torch": str(torch.__version__)}
        self.state: Mapping[str, Any] | None = None
        self.written, self.finished = 0, False  # steps in the newest checkpoint, and whether these are all
        self._duration = self._last = 0.0
        self._tried = False
        processes.first(folder.lock)
        try:
            found = processes.first(self._found)
            if found is not None:
                self._take(*found)
        except BaseException:
            folder.unlock()
            raise

    def _found(self) -> tuple[Any, Mapping[str, torch.Tensor]] | None:
        """Return the state of the newest checkpoint, and its tensors, if there is one and it is of the same call."""
        found = self.folder.newest()
        if found is None:
            return None
        manifest, tensors = found
        check_same(self.folder.path, manifest["call"], self.call)
        if manifest["versions"] != self.versions:
            was = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
            warnings.warn(
                f"{self.folder.path} was written by {was}; with other versions the fit goes on, but not bit for bit",
                UserWarning,
                stacklevel=5,
            )
        return manifest["state"], tensors

    def _take(self, state: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        kept = from_entry(state, tensors)
        self.history.steps[:] = steps_from_columns(kept["steps"])
        self.history.validation[:] = kept["validation"]
        self.finished = kept["course"]["phase"] == "finished"
        self.state, self.written = kept, len(self.history.steps)

    def begin(self, course: Course, history: History, stopping: EarlyStopping) -> None:
        """Give a fit that is about to begin the state to go on from, its history, and what lets it stop early."""
        history.steps[:], history.validation[:] = self.history.steps, self.history.validation
        self.history, self.course, self.stopping, course.pause = history, course, stopping, self._pause
        if self.state is not None:
            course.resume(self.state["course"])
            stopping.load_state_dict(self.state["stopping"])
            if stopping.is_over:
                course.skip_to_end()
        self.state = None

    def is_time(self) -> bool:
        """Return whether a checkpoint is due: after so many steps, the very first, and the last of a phase."""
        done, course = len(self.history.steps), self.course
        return done % self.every == 0 or not (self.written or self._tried) or course.next == course.numbers.stop

    def finish(self) -> None:
        """Write the last checkpoint, of a fit that is finished, unless it is there."""
        if not self.finished:
            self.save()

    def _pause(self) -> None:
        """Write a checkpoint among measurements, if that takes little of their time."""
        if time.monotonic() - self._last >= SHARE * self._duration:
            self.save()

    def save(self) -> None:
        """Write a checkpoint.

        Warns:
            UserWarning: where it cannot be written; the fit goes on, and the next one is tried in its time.

        Raises:
            ProbqError: if there is something in the state of the fit that a file cannot hold.
        """
        self._tried, began = True, time.monotonic()
        if not self.processes.is_first:
            self.written = len(self.history.steps)
            return
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "course": self.course.state(),
            "stopping": self.stopping.state_dict(),
            "steps": steps_to_columns(self.history.steps),
            "validation": self.history.validation,
        }
        content = {"call": self.call, "versions": self.versions, "state": to_entry(state, "state", tensors)}
        try:
            self.folder.write(content, tensors)
        except ProbqError as error:
            warnings.warn(
                f"no checkpoint after {len(self.history.steps)} steps: {error}. The fit goes on; what was written "
                f"before stays, with {self.written} steps",
                UserWarning,
                stacklevel=3,
            )
        else:
            self.written = len(self.history.steps)
        self._last = time.monotonic()
        self._duration = self._last - began

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Add to whatever ends a fit early where it goes on; afterwards other fits may write to the folder."""
        try:
            yield
        except BaseException as error:
            if self.written:
                error.add_note(
                    f"{self.folder.path} keeps this fit with its first {self.written} steps; the same call goes on "
                    "from there"
                )
            raise
        finally:
            self.folder.unlock()
