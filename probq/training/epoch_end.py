"""The end of an epoch asks for held-out data, the file of the posterior, and whether to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from probq.evaluation.diagnostics.held_out import validate
from probq.network.quantized.quantized import Quantized
from probq.training.processes.alone import Processes
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.svi.early_stopping import EarlyStopping
from probq.training.svi.history import History
from probq.utils.batches import Batches


@dataclass(frozen=True)
class EpochEnd:
    """This is done at the end of each epoch: the network is validated and saved.

    Args:
        q: the network.
        data: the batches.
        held_out: held-out batches, or None.
        file: where the posterior is saved, or None.
        processes: of the fit, the first of which writes.
        stopping: decides which epoch's state is left in the end.
    """

    q: Quantized
    data: Batches
    held_out: Batches | None
    file: Any
    processes: Processes
    stopping: EarlyStopping

    def __call__(self, history: History, last: str) -> None:
        """Do what is due after the last step of a history, where the last phase of the fit has this name."""
        if self.held_out is not None or self.file is not None:
            self.processes.together(lambda: estimate_before_use(self.q, self.data))
            self.processes.align(self.q)
        if self.held_out is not None:
            found = self.processes.agree(validate(self.q, self.held_out))
            history.validation.append({"epoch": history.steps[-1].epoch, **found})
            self.stopping.take(history.steps[-1], last, found["loss"])
        self._save()

    def of_the_last(self) -> None:
        """Leave the network in the best state, if the fit looks for one."""
        if self.stopping.restore():
            self._save()

    def _save(self) -> None:
        if self.file is not None and self.processes.is_first:
            self.q.save(self.file)
