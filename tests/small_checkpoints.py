"""A small fit with all phases, run as one call that can be made again, in this process or in another one.

`python tests/small_checkpoints.py FOLDER OUT EVERY` makes the call; OUT gets the network's tensors, in safetensors.
"""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import Budget, Plan, Quantized, Rates
from probq.codebooks import ladder
from probq.training.refinement import trials

X = torch.rand(80, 4, generator=torch.Generator().manual_seed(1))
Y = (X.sum(1) > 2).long() + (X[:, 0] > 0.5)
BUDGET = Budget(percent=1.5)
EPOCHS = 8


def network(rungs: tuple[int, ...] = (1, 2, 4, 8), width: int = 6, seed: int = 0) -> Quantized:
    """Linear layers with batch normalisation and dropout, so that there are statistics and draws to lose."""
    torch.manual_seed(seed)
    parts = [nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3)]
    return probq.quantize(nn.Sequential(*parts).eval(), X, Plan(weight=ladder(*rungs), profile="dyadic"))


def shuffled(**options: Any) -> DataLoader[Any]:
    """Three batches, in an order that random numbers decide."""
    return DataLoader(TensorDataset(X[:48], Y[:48]), 16, shuffle=True, **options)


def call(q: Quantized, folder: Any, batches: Any = None, **options: Any) -> probq.History:
    """One call of a fit of 24 steps with all phases: search, measured networks, trials, and tuning."""
    how: dict[str, Any] = {
        "search": 0.5,
        "rates": Rates(weights=1e-2),
        "seed": 0,
        "evaluations": 8,
        "budget": BUDGET,
    } | options
    if "validation" not in how:
        how["validation"] = DataLoader(TensorDataset(X[48:], Y[48:]), 16)
    if folder is not None:
        how.setdefault("every", 3)
    batches = shuffled() if batches is None else batches
    return probq.fit(q, batches, epochs=how.pop("epochs", EPOCHS), progress=False, checkpoint=folder, **how)


def tensors(q: Quantized) -> dict[str, Tensor]:
    """All tensors of a network, and the energy that its fit has measured."""
    rows = {} if q.energy is None else dict(zip(q.energy.names, map(torch.tensor, q.energy.unary), strict=True))
    return {name: tensor.clone() for name, tensor in q.state_dict().items()} | {
        f"energy.{n}": r for n, r in rows.items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two networks have the same tensors, to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trials.FEWEST = 1
    fitted = network()
    call(fitted, sys.argv[1], every=int(sys.argv[3]))
    Path(sys.argv[2]).write_bytes(safetensors.torch.save({n: t.contiguous() for n, t in tensors(fitted).items()}))
