"""`Quantized` is a network with a posterior over its widths and codes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import code_levels, for_each_weight
from probq.cost.budget import Budgets, budgets
from probq.decisions.assignment import Assignment
from probq.decisions.draw_warnings import count_untuned, warn_of_draws, warn_untuned
from probq.decisions.outputs import cast_like_inputs, stacked_outputs
from probq.decisions.widths import fix_widths, widths_are_fixed
from probq.decisions.within_budget import mode as most_probable
from probq.decisions.within_budget import sample as draws_within
from probq.decisions.within_budget import shipped_assignment, width_log_prob
from probq.network.program.biases import accumulator_step, rounded_bias, weight_step
from probq.network.program.decided_codes import decided_codes, decided_output, rung_onehots
from probq.network.program.program import Program
from probq.network.quantized.calls import called_alike
from probq.network.quantized.save import save
from probq.network.quantizers.base import Rung
from probq.network.tracing.layer import Layer
from probq.utils.arguments import check_seed, is_count
from probq.utils.errors import ProbqError
from probq.utils.random_stream import exclusive
from probq.utils.structures.tensors import Keywords, arguments, tensors_in, with_tensors


class Quantized(Program):
    """A quantized network has a posterior over the width of every quantizer and the code of every weight.

    Made by `quantize`, trained by `fit`. Calling it runs the network at its mode. To Pyro it is a program,
    `model` and `guide`.
    """

    def mode(self, budget: Budgets = None, measured: bool = True) -> Assignment:
        """Return the most probable widths whose cost keeps the budget, and the most probable codes.

        Where `fit` had validation batches and measured that other widths do better, it is those it tuned the network
        for, and those are returned for the budget that it kept; what it measured has updated the law of the widths, and
        the assignment's `gap` says by how many nats the most probable ones are still more probable.

        Args:
            budget: the limit, or a list of limits that all hold; by default what was last fitted for, if anything.
            measured: False gives the most probable widths whatever was measured.

        Raises:
            ProbqError: if the budget is below the cheapest reachable cost.
        """
        choose = shipped_assignment if measured else most_probable
        return choose(self, budget or self.budget)

    def sample(self, n: int, budget: Budgets = None, seed: int | None = None) -> list[Assignment]:
        """Return draws from the posterior given that the cost keeps the budget, so that each one does.

        Args:
            n: number of draws.
            budget: the limit, or a list of limits that all hold; by default what was last fitted for, if anything.
            seed: makes the draws reproducible; by default torch's random state decides.

        Warns:
            UserWarning: if the posterior was never fitted.

        Raises:
            ProbqError: if the budget is below the cheapest reachable cost.
        """
        warn_of_draws(self)
        return self._drawn(n, budget, seed)

    def _drawn(self, n: int, budget: Budgets, seed: int | None) -> list[Assignment]:
        if not is_count(n, 1):
            raise ProbqError(f"sample takes a number of draws, 1 or more, not {n!r}")
        check_seed(seed)
        return draws_within(self, n, budget or self.budget, seed)

    def log_prob(self, widths: Mapping[str, Any]) -> float:
        """Return the log-probability of a choice of widths under the posterior in nats, whatever it costs.

        `Assignment.log_prob` is the same number. The posterior is that of the gates, or where `fit` or `decide` have
        measured choices, the law that they left: `-q.energy(widths)` up to a constant. Where a width is fixed, another
        one has `-inf`.

        Args:
            widths: bits of every quantizer by name, as in `Assignment.widths`.

        Raises:
            ProbqError: if a quantizer has no width there, or one that is not on its ladder.

        Example:
            >>> import probq
            >>> q = probq.quantize(torch.nn.Linear(3, 2), torch.rand(4, 3))
            >>> a = q.mode()
            >>> q.log_prob(a.widths) == a.log_prob
            True
        """
        return width_log_prob(self, widths)

    def at(self, assignment: Assignment) -> Quantized:
        """Return a copy of the network with its widths fixed, batch normalisation folded, and its codes those decided.

        Its `budget` is the one of the assignment, if it was decided under one; otherwise this network's, if it is kept.

        Args:
            assignment: from `mode` or `sample` of this network.

        Raises:
            ProbqError: if the assignment belongs to another network or plan.
        """
        with exclusive():
            fixed = copy.deepcopy(self)
        fixed.folded = True
        fix_widths(fixed, assignment.widths)
        fixed._place(assignment)
        fixed.budget = assignment.budget or (self.budget if self._keeps_budget(assignment) else None)
        return fixed

    def _keeps_budget(self, assignment: Assignment) -> bool:
        return all(assignment.cost(b.cost) <= b.absolute(self.layers) for b in budgets(self.budget))

    @torch.no_grad()
    def _place(self, assignment: Assignment) -> None:
        """Move the location of every weight whose nearest level is not its decided one onto that level."""
        current = decided_codes(self, assignment.widths)
        chosen = rung_onehots(self, assignment.widths)
        for name in self.weight_names:
            wanted = torch.as_tensor(np.asarray(assignment.codes[name]), device=self.device)
            if wanted.shape != current[name].shape:
                raise ProbqError(f"the assignment's codes for {name} do not fit; was it made for another network?")
            differ = wanted != torch.as_tensor(current[name], device=self.device)
            if differ.any():
                rung = self.rung(name, chosen[name])
                if self.weights[name].free_codes:
                    self.weights[name].place(int(chosen[name].argmax()), wanted)
                    continue
                differ = for_each_weight(rung.levels, differ)
                value = (code_levels(rung.levels, wanted.long()) * rung.scale).expand_as(differ)
                factor = torch.ones_like(value) if rung.factor is None else rung.factor.expand_as(differ)
                factor = torch.where(factor == 0, torch.ones_like(factor), factor)  # a dead channel: any weight will do
                self.originals.keep(self.net, name)
                weight = self.net.get_parameter(name)
                weight[differ] = (value / factor)[differ].to(weight.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output at its mode, exactly that of the integer model, in the inputs' precision."""
        args = (*args, Keywords(kwargs)) if kwargs else args
        with exclusive(), called_alike(self.form, args):
            if self.training and widths_are_fixed(self):
                return decided_output(self, arguments(args))
            return self._decided(self.mode(), args)

    @torch.no_grad()
    def _decided(self, assignment: Assignment, args: tuple[Any, ...]) -> Any:
        """Return the output at an assignment, in evaluation mode, normalisation folded, in float64 inside."""
        chosen = rung_onehots(self, assignment.widths)
        with self.evaluating():
            levels = {
                name: code_levels(
                    self.rung(name, chosen[name]).levels,
                    torch.as_tensor(assignment.codes[name], device=self.device).long(),
                )
                for name in self.weight_names
            }
            try:
                return cast_like_inputs(self.run(chosen, levels, args, exact=True), args)
            except RuntimeError:
                # a network with float32 constants of its own cannot run in float64; its own precision must do
                return self.run(chosen, levels, args)

    def outputs(self, assignments: list[Assignment], x: Any) -> list[Any]:
        """Return the outputs at several assignments, each exactly that of its integer model, in the inputs' precision.

        Args:
            assignments: from `mode` or `sample` of this network; those that share all widths are computed together
                where the network has no convolutions.
            x: a batch of inputs, a tuple of the network's arguments, or a dictionary of them by keyword.
        """
        args = arguments(x)
        with called_alike(self.form, args):
            together = stacked_outputs(self, assignments, args) if assignments else None
            if together is not None:
                return list(cast_like_inputs(together, args))
            return [self._decided(a, args) for a in assignments]

    def predict(self, x: Any, draws: int = 16, seed: int | None = None, budget: Budgets = None) -> Any:
        """Return the outputs of networks drawn from the posterior, `[draws, batch, ...]`, one network a row.

        Where the network returns several tensors, so does this, built alike.

        Args:
            x: a batch of inputs, a tuple of the network's arguments, or a dictionary of them by keyword.
            draws: number of networks.
            seed: makes the draws reproducible.
            budget: the limit that every drawn network keeps; by default the one last fitted for, if any.

        Warns:
            UserWarning: if the posterior was never fitted, or draws have other widths than the network was tuned at.
        """
        warn_of_draws(self)
        drawn = self._drawn(draws, budget, seed)
        warn_untuned(count_untuned(self, drawn), draws, "draws", "q.at(q.mode()).predict(...)")
        outputs = self.outputs(drawn, x)
        parts = list(zip(*(list(tensors_in(output)) for output in outputs), strict=True))
        if not parts:
            raise ProbqError(
                f"predict needs a network that returns tensors, not a {type(outputs[0]).__name__}; "
                "for others, call q.at(a) for each a of q.sample(...)"
            )
        return with_tensors(outputs[0], [torch.stack(each) for each in parts])

    def rounded_bias(self, layer: Layer, step: Tensor | None) -> Tensor | None:
        """Return a layer's bias, normalisation folded in, rounded to multiples of its accumulator's `step`, or None."""
        return rounded_bias(self.net, layer, self.folded, step)

    def accumulator_step(self, layer: Layer, weight: Rung, input_onehot: Tensor) -> Tensor:
        """Return the step of a layer's accumulator, weight scale times input scale, `[channels]` or a scalar."""
        x = self.quantizer(layer.input or "").rung(input_onehot.detach().argmax(-1))
        return accumulator_step(self.net, layer, weight, x)

    def weight_step(self, layer: Layer, weight: Rung) -> Tensor:
        """Return the step that all weights of an output channel are multiples of, shaped to broadcast to the weight."""
        return weight_step(layer, weight)

    def save(self, path: Any) -> None:
        """Write the posterior as safetensors with a JSON header; see `probq.load`."""
        with exclusive():
            save(self, path)

    def __repr__(self) -> str:
        lines = [f"Quantized({type(self.net).__name__}: {len(self.layers)} layers, {len(self.quantizers)} quantizers"]
        lines += [f"  {name}: {q.ladder.bits} bits" for name, q in self.named_quantizers()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)]) + ")"
