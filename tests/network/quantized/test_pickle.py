"""What people do with a torch module: pickle it, send it to other processes, copy it, and load its state."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import probq
from probq import Budget, Plan
from probq.codebooks import ladder

X, Y = torch.randn(48, 4, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]
BUDGET = Budget(percent=1.5)


def make(gates: str = "tensor") -> probq.Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return probq.quantize(net, X, plan=Plan(weight=ladder(1, 2, 4), gates=gates))


def fitted(gates: str = "tensor") -> probq.Quantized:
    q = make(gates)
    probq.fit(q, PAIRS, BUDGET, epochs=4, seed=0, progress=False)
    return q


def torch_saved(q: Any) -> Any:
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda q: pickle.loads(pickle.dumps(q)),
    "torch.save": torch_saved,
    "deepcopy": copy.deepcopy,
    "twice": lambda q: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(q)))),
}


@pytest.mark.parametrize("again", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_a_copy_of_a_fitted_network_is_the_network(again: Callable[[Any], Any], gates: str) -> None:
    q = fitted(gates)
    other = again(q)
    assert torch.equal(q(X), other(X))
    assert q.mode() == other.mode()
    assert q.sample(3, seed=1) == other.sample(3, seed=1)
    losses = [[s.loss for s in probq.fit(each, PAIRS, BUDGET, 2, seed=3, progress=False).steps] for each in (q, other)]
    assert losses[0] == losses[1]


def test_a_decided_network_and_one_in_training_are_pickled_too() -> None:
    q = fitted()
    fixed = q.at(q.mode())
    assert torch.equal(COPIES["pickle"](fixed)(X), fixed(X))
    running = probq.steps(make(), PAIRS, BUDGET, epochs=2, seed=0)
    next(running)
    svi_q = make()
    SVI(svi_q.model, svi_q.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(X, Y)
    assert torch.equal(COPIES["torch.save"](svi_q)(X), svi_q(X))


def outputs(q: probq.Quantized, x: Tensor) -> np.ndarray:
    torch.set_num_threads(1)
    return q(x).numpy()


def test_spawned_processes_take_and_give_networks() -> None:
    q = fitted()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(outputs, (q, X)), outputs(q, X))
        other = pool.apply(fitted)
    assert torch.equal(other(X), q(X))


def test_other_public_objects_are_pickled() -> None:
    q = make()
    history = probq.fit(q, PAIRS, BUDGET, epochs=2, validation=PAIRS, seed=0, progress=False)
    model = probq.lower(q)
    for thing in (BUDGET, Plan(), history, q.mode(), q.layers):
        assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)
    assert pickle.loads(pickle.dumps(model)).sha256() == model.sha256()
    probq.fit(q, PAIRS, BUDGET, epochs=1, rounding=False, seed=0, progress=False)
    ensemble = probq.ensemble(q.at(q.mode()), 2, Budget(percent=50), seed=0)
    assert np.array_equal(pickle.loads(pickle.dumps(ensemble))(X), ensemble(X))


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_the_state_of_a_fitted_network_loads_into_a_new_one(gates: str) -> None:
    q = fitted(gates)
    other = make(gates)
    assert other.load_state_dict(q.state_dict()) == ([], [])
    assert other.mode(BUDGET) == q.mode()
    assert torch.equal(other.at(other.mode(BUDGET))(X), q(X))
    # and back: the state before any decision into one that has been decided
    assert q.load_state_dict(make(gates).state_dict()) == ([], [])
    assert all(quantizer.tuned is None for _, quantizer in q.named_quantizers())


def test_the_state_of_a_decided_network_keeps_its_widths() -> None:
    q = fitted()
    fixed, other = q.at(q.mode()), make()
    assert other.load_state_dict(fixed.state_dict()) == ([], [])
    assert other.mode().widths == fixed.mode().widths
    assert not any(quantizer.free for _, quantizer in other.named_quantizers())


def test_a_state_of_another_network_is_told_by_torch(tmp_path: Path) -> None:
    other = probq.quantize(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)), X)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(fitted().state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        make().load_state_dict({})
