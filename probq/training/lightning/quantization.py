"""A quantized network is a Lightning module here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from probq.cost.budget import Budgets, budgets, one_or_several
from probq.decisions.widths import fixed_by_decision
from probq.decisions.within_budget import check_budget_reachable
from probq.evaluation.diagnostics.held_out import scores
from probq.network.program.program import check_posterior
from probq.network.quantized.network_state import network_state, restore_network
from probq.network.quantized.quantized import Quantized
from probq.training.distillation import as_teacher
from probq.training.fit_options import FitOptions, options_of, updates_of
from probq.training.preparation import prepare
from probq.training.processes.alone import Processes
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.svi.learning_rates import Rates
from probq.training.svi.loop import Loop
from probq.training.svi.trainer import Trainer, make_codes_certain
from probq.training.svi.updates import Descent
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.optional_import import require
from probq.utils.structures.tensors import arguments, call

LightningModule: Any = require("lightning.pytorch", "distributed").LightningModule
TAKEN = frozenset({"temperature", "likelihood", "rates", "optimizer", "rule", "teacher", "rounding"})


class Alike(Processes):
    """These are the processes of a Lightning `Trainer`, which draw the same widths from one seed.

    Args:
        seed: of all processes.
        device: where they draw.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed_of_widths, self.device = seed, device

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Draw the same random numbers in all processes within the context, other ones each time."""
        self.seed_of_widths += 1
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed_of_widths)
            yield


class Quantization(LightningModule):
    """This is one phase of a fit as a Lightning module: the search for widths, or the tuning of a decided network.

    What a `Trainer` minimises is what `probq.fit` minimises: the negative ELBO for one example, and in a search the
    budget's term. It logs `loss`, `nll`, `kl` and `percent` of each step, and `val_loss` (nats for one example) and
    `val_accuracy` at the mode. Clipping, accumulation, averages, devices and checkpoints are the Trainer's; several
    processes (`strategy="ddp"`) draw the same widths and codes of their own.

        trainer.fit(probq.lightning.Quantization(q, budget), loader)
        tuned = q.at(q.mode(budget))
        trainer.fit(probq.lightning.Quantization(tuned), loader, held_out)

    Args:
        q: from `quantize`, whose widths are searched for, or from `Quantized.at`, which is tuned; trained in place.
        budget: limit on the expected cost, or a list of limits; only for a search.
        options: of `FitOptions`: temperature, likelihood, rates, optimizer, rule, teacher and rounding.

    Raises:
        ProbqError: if an option is unknown or the Trainer's, or the budget cannot be reached.

    Example:
        >>> import probq
        >>> q = probq.quantize(torch.nn.Linear(3, 2), torch.rand(8, 3))
        >>> module = Quantization(q, probq.Budget(percent=2), temperature=0.01)
    """

    def __init__(self, q: Quantized, budget: Budgets = None, **options: Any) -> None:
        super().__init__()
        check_posterior(q, "Quantization")
        self.options: FitOptions = options_of("Quantization", options)
        if others := [name for name in options if name not in TAKEN]:
            raise ProbqError(f"Quantization leaves {others[0]} to the Trainer, or to probq.fit")
        check_budget_reachable(q, budget)
        self.q, self.budget = q, budget
        self.searches = not fixed_by_decision(q)
        self.updates = updates_of(self.options, self.options.rates or Rates())
        self.loop: Loop | None = None
        self.kept: dict[str, Any] | None = None  # of the budgets, from a checkpoint of the Trainer
        self.begun = -1  # the step whose term of the budget was added last

    def setup(self, stage: str) -> None:
        """Set likelihood and scales from the training data, before optimizers are made."""
        if stage == "fit":
            self.trainer.fit_loop.setup_data()
            data = Batches(self.trainer.train_dataloader, self.q.device)
            prepare(self.q, data, self.options.likelihood, self.options.temperature)
            self.q.budget = one_or_several(self.budget) if budgets(self.budget) else self.q.budget

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer of the phase, and its schedule if it has one."""
        how = self.updates.search(self.q, self._steps(), False) if self.searches else self._tuning()
        if how.schedule is None:
            return {"optimizer": how.optimizer}
        schedule = {"scheduler": how.schedule, "interval": "step", "monitor": "loss"}
        return {"optimizer": how.optimizer, "lr_scheduler": schedule}

    def _tuning(self) -> Descent:
        return self.updates.tuning(self.q, self._steps())

    def _steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ProbqError("a fit has an end: give the Trainer max_epochs or max_steps")
        return int(steps)

    def on_fit_start(self) -> None:
        """Begin the phase, where the Trainer has moved the network to."""
        seed = self.trainer.strategy.broadcast(int(torch.randint(2**31, ())))
        data, teacher = Batches(self.trainer.train_dataloader, self.q.device), as_teacher(self.options.teacher)
        lessons = None if teacher is None else teacher.begin(self.q)
        if lessons is not None and lessons.moved:
            raise ProbqError("Quantization takes no teacher that learns; give probq.fit one, or an offline teacher")
        trained = Trainer(
            data=data,
            budget=self.budget,
            rule=self.options.rule,
            updates=self.updates,
            rounding=self.options.rounding,
            lessons=lessons,
            processes=Alike(seed, self.q.device),
        )
        self.loop = trained.loop(self.q)
        if self.searches:
            trained.begin_search(self.loop)
            self.loop.budgets.begin(self.options.rule, self._steps())
            if self.kept is not None:
                self.loop.budgets.load_state_dict(self.kept)
        else:
            trained.begin_tuning(self.loop)
        self.q.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, for one example in nats, with the budget's term once a step."""
        assert self.loop is not None
        loop, number = self.loop, self.trainer.global_step
        x, y = next(iter(Batches([batch], self.q.device)))
        bound = loop.objective(x, y, loop.lessons.lesson(x, False) if loop.lessons else None)
        loss = bound.value
        if number != self.begun:
            term = loop.budgets.add_to(torch.zeros_like(loss), number, bound.probs)
            loss, self.begun = loss + term.to(loss) * self.trainer.accumulate_grad_batches, number
        limits = loop.budgets.standing()
        percent = limits[0].percent if limits else loop.budgets.percent()
        kl = float(bound.value.detach()) - bound.data
        self.log_dict({"loss": loss.detach(), "nll": bound.nll, "kl": kl, "percent": percent}, batch_size=len(y))
        if self.trainer.world_size > 1:  # every parameter has to have a gradient there
            loss = loss + 0 * torch.stack([p.sum() for p in self.q.parameters() if p.requires_grad]).sum()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let the rule move gates, if it does so in the optimizer's stead."""
        assert self.loop is not None
        self.loop.budgets.move_gates(self.trainer.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move a teacher that follows the network."""
        if self.loop is not None and self.loop.lessons:
            self.loop.lessons.move()

    def on_validation_epoch_start(self) -> None:
        """Estimate the statistics of normalisation at the widths that are measured."""
        if self.loop is not None:
            estimate_before_use(self.q, self.loop.data)
            self.q.eval()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure loss and accuracy at the mode, and log both."""
        x, y = next(iter(Batches([batch], self.q.device, "validation data")))
        found = scores(self.q, [(x, y)], lambda x: call(self.q, arguments(x)))
        named = {f"val_{name}": value for name, value in found.items()}
        self.log_dict(named, batch_size=len(y), sync_dist=True, prog_bar=True)

    def on_train_end(self) -> None:
        """End the phase: promises of budgets are kept, or normalisation is folded, alike in all processes."""
        assert self.loop is not None
        if self.searches:
            self.loop.budgets.keep_chances()
            self.loop.budgets.end()
        else:
            self.loop.fold()
        restore_network(self.q, self.trainer.strategy.broadcast(network_state(self.q)))
        make_codes_certain(self.q)
        self.q.rounding = False
        self.q.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the limits stand."""
        if self.loop is not None and self.searches:
            checkpoint["budgets"] = self.loop.budgets.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take where the limits stood."""
        self.kept = checkpoint.get("budgets")
