"""`loss` measures the loss with one quantizer at a time on a narrower rung."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from probq.criteria.measuring.measure import mean_loss, measured, single_choices, single_energy
from probq.criteria.measuring.ready import perturbed_network, tell_negative
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy


def loss(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    resume: str | PathLike[str] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = L(quantizer i on b bits) - L(all on their widest rung)`, the mean negative log-likelihood in nats.

    All else stays on its widest rung, and the statistics of batch normalisation follow each choice. It ranks networks
    better than many finer ideas do, and takes one pass over the examples for each rung.

    An energy of weights alone is 0 for inputs, as if their widths cost nothing; add one of inputs before
    `probq.allocate` chooses both.

    Args:
        q: from `quantize`.
        batches: iterable of `(input, target)`, such as a `DataLoader`.
        examples: greatest number of examples, kept in memory.
        of: "weights" or "inputs" perturbs the quantizers of these alone; the energy of others is 0.
        resume: file that keeps what was measured, so that a killed run goes on. `loss` and `clado` may share one.
        processes: number of processes that share the choices; results are the same. In a script, call below
            `if __name__ == "__main__":`, with classes that a module defines.
        progress: show a progress bar.

    Warns:
        UserWarning: if energies are negative.

    Raises:
        ProbqError: if there are no labels or no data, or no such quantizer has a choice.

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> x = torch.rand(64, 2)
        >>> y = net(x).argmax(-1)  # in your case labels
        >>> plan = probq.Plan(weight=probq.codebooks.ladder(4, 8), input=probq.codebooks.ladder(8, signed=False))
        >>> energy = loss(probq.quantize(net, x, plan), [(x, y)], progress=False)
        >>> energy.names
        ('0.weight', '2.weight')
    """
    network = perturbed_network(q, batches, examples, "loss", labels=True, of=of)
    found = measured(network, single_choices(network), mean_loss, resume, progress, processes)
    return tell_negative(single_energy(network, found, "loss"))
