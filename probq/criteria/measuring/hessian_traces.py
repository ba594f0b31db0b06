"""Traces of Hessians are estimated with random signs, without the Hessians themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from probq.criteria.measuring.float_network import Opened, log_probs, opened
from probq.criteria.measuring.perturbed import Batch
from probq.network.program.program import Program
from probq.utils.errors import ProbqError, sentence
from probq.utils.structures.tensors import rows_of


def hessian_traces(
    q: Program, data: list[Batch], names: Collection[str], probes: int, progress: bool
) -> dict[str, float]:
    """Return the trace of the Hessian of the float network's loss for each quantizer, the mean over examples:

        tr H ~ mean over probes of z' H z,    z random signs.

    The Hessian is that of one example's negative log-likelihood in nats, with respect to a weight, or to all numbers
    that enter a layer for this example. One product `H z` serves all weights, another one all inputs.

    Args:
        q: the network, with scales.
        data: examples with targets.
        names: the quantizers whose weights or inputs are meant.
        probes: number of random vectors for each batch.
        progress: show a progress bar.

    Raises:
        ProbqError: if torch knows no second derivative of what the network does.
    """
    kinds = [[n for n in names if n in q.weights], [n for n in names if n in q.inputs]]
    traces, rows = dict.fromkeys(names, 0.0), sum(rows_of(x) for x, _ in data)
    bar = tqdm(total=len(data) * probes, disable=not progress, unit="probe", dynamic_ncols=True)
    with q.evaluating(), bar, sdpa_kernel(SDPBackend.MATH):  # its other kernels have no second derivative
        for x, y in data:
            run = opened(q, x, names)
            loss = -log_probs(q, run.output, y).sum()
            for found in _probed(run, loss, [kind for kind in kinds if kind], probes):
                for name, value in found.items():
                    traces[name] += value / (probes * rows)
                bar.update()
    return traces


def _probed(run: Opened, loss: Tensor, kinds: list[list[str]], probes: int) -> Iterator[dict[str, float]]:
    """Yield `z' H z` by quantizer for one draw after the other."""
    names = [name for kind in kinds for name in kind for _ in run.changes[name]]
    leaves = [change for kind in kinds for name in kind for change in run.changes[name]]
    try:
        first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        for _ in range(probes):
            found = dict.fromkeys(names, 0.0)
            for kind in kinds:
                signs = {place: _signs(leaves[place]) for place, name in enumerate(names) if name in kind}
                along = torch.stack([(first[place] * z).sum() for place, z in signs.items()]).sum()
                products = _gradients(along, leaves)
                for place, z in signs.items():
                    found[names[place]] += float((z * products[place]).double().sum())
            yield found
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ProbqError(
            f"criteria.hawq takes second derivatives, and torch has none here: {sentence(error)}; use "
            "probq.criteria.mpqco, which takes first ones"
        ) from error


def _gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Return the gradients with respect to all leaves by way of `backward`, which leaves none behind.

    `torch.autograd.grad` would pass by operations that can be differentiated but once, as if they were constant.
    """
    total.backward(retain_graph=True)
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def _signs(like: Tensor) -> Tensor:
    return (2 * torch.randint(0, 2, like.shape) - 1).to(like)
