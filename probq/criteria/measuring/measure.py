"""Many choices of widths are measured with a progress bar, and a killed run goes on where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Mapping
from os import PathLike

import numpy as np
from tqdm import tqdm

from probq.criteria.measuring import measurement_file
from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.measurement_file import Choice
from probq.criteria.measuring.perturbed import Batch, PerturbedNetwork
from probq.criteria.measuring.processes import Measure, in_processes
from probq.evaluation.diagnostics.held_out import scores
from probq.network.distributions.kl import total_divergence
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import rows_of

SAVE_EVERY = 5.0  # seconds between two writes of the file


def single_choices(network: PerturbedNetwork) -> list[Choice]:
    """Return every perturbed quantizer on each of its narrower rungs, all others on the widest."""
    rows = zip(network.names, network.widths, strict=True)
    return [((name, b),) for name, bits in rows if name in network.perturbed for b in bits[:-1]]


def pair_choices(network: PerturbedNetwork) -> list[Choice]:
    """Return every two perturbed quantizers on each pair of narrower rungs, all others on the widest."""
    single = single_choices(network)
    return [a + b for k, a in enumerate(single) for b in single[k + 1 :] if a[0][0] != b[0][0]]


def measured(
    network: PerturbedNetwork,
    choices: Iterable[Choice],
    measure: Measure,
    resume: str | PathLike[str] | None,
    progress: bool,
    processes: int = 1,
) -> dict[Choice, float]:
    """Measure the value of each choice, the widest rungs included as `()`.

    The widest rungs are measured in any case: what a file keeps is taken only where it has the same value for them.

    Args:
        network: that is measured.
        choices: to measure.
        measure: a function with a name, which gives the value of a network at given widths.
        resume: file that keeps what was measured; one of the same measure, network and data is read first.
        progress: show a progress bar.
        processes: their number; 1 measures in this one.

    Raises:
        ProbqError: if a value is not finite, the file is of another measurement, or a process cannot have the network.
    """
    check_number("processes", processes, 1)
    key = "" if resume is None else measurement_file.key(network, measure.__name__)
    found = measurement_file.read(resume, key)
    reference = _finite((), measure(network, {}))
    measurement_file.check_reference(resume, found.setdefault((), reference), reference)
    wanted = [(), *choices]
    left = [choice for choice in wanted if choice not in found]
    values = in_processes(network, left, measure, processes) if processes > 1 else _here(network, left, measure)
    written = time.monotonic()
    try:
        for choice, value in tqdm(values, total=len(left), disable=not progress, unit="network", dynamic_ncols=True):
            found[choice] = _finite(choice, value)
            if time.monotonic() - written > SAVE_EVERY:
                measurement_file.write(resume, key, found)
                written = time.monotonic()
    finally:
        values.close()
        measurement_file.write(resume, key, found)
    return {choice: found[choice] for choice in wanted}


def _finite(choice: Choice, value: float) -> float:
    if not math.isfinite(value):
        raise ProbqError(f"the loss is {value} at {dict(choice) or 'the widest rungs'}; check the data")
    return value


def _here(
    network: PerturbedNetwork, choices: Iterable[Choice], measure: Measure
) -> Generator[tuple[Choice, float], None, None]:
    for choice in choices:
        yield choice, measure(network, dict(choice))


def mean_loss(network: PerturbedNetwork, widths: Mapping[str, int]) -> float:
    """Return the loss of a network at given widths for one example in nats."""
    outputs = network.outputs(widths)
    labelled = [(x, y) for x, y in network.batches if y is not None]
    return scores(network.q, labelled, lambda _: next(outputs)[0])["loss"]


def mean_divergence(network: PerturbedNetwork, widths: Mapping[str, int]) -> float:
    """Return the divergence of a network's outputs at given widths from those of the float one for one example."""
    total = rows = 0.0
    for law, (output, (x, _)) in zip(network.float_laws, network.outputs(widths), strict=True):
        total += total_divergence(law, network.q.law(output))
        rows += rows_of(x)
    return total / rows


def measure_pruned(q: Quantized, data: list[Batch], rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return predicted energies of each rung, `[B]` by quantizer, with those of 0 bits measured in their place.

    The error there is as large as the numbers themselves, so that no expansion around these holds. What is measured is
    the loss where there are targets, and the divergence from the float network where there are none.

    Args:
        q: the network, with scales.
        data: examples, all of them with targets or none.
        rows: in nats.
    """
    pruned = [name for name in rows if q.quantizer(name).ladder.bits[0] == 0]
    if not pruned:
        return dict(rows)
    network, measure = PerturbedNetwork(q, data), mean_divergence if any(y is None for _, y in data) else mean_loss
    reference = measure(network, {})
    measured_rows = {}
    for name in pruned:
        added = measure(network, {name: 0}) - reference
        measured_rows[name] = np.array([rows[name][-1] + added, *rows[name][1:]])
    return {**rows, **measured_rows}


def single_energy(network: PerturbedNetwork, found: Mapping[Choice, float], label: str) -> Energy:
    """Return what each rung adds to the value of the widest ones, zeros for quantizers that are not perturbed."""
    rows = {
        name: np.array([found[((name, b),)] for b in bits[:-1]] + [found[()]])
        for name, bits in zip(network.names, network.widths, strict=True)
        if name in network.perturbed
    }
    return energy_of(network.q, rows, label)
