"""A fit that is stopped goes on to the very bits of the fit that was not, from wherever it was stopped."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoints import BUDGET, X, Y, call, network, same, shuffled, tensors
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

import probq
from probq import Budget, Quantized, Rates
from probq.rules import PID, ConstraintGuided
from probq.training.checkpoints.folder import CheckpointFolder

PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]
IMAGES = X[:, :, None, None] * torch.tensor([[1.0, 0.5], [0.25, 2.0]])
COSTS = [BUDGET, Budget(percent=8, cost=probq.cost.storage)]


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a few steps, so that small fits make them."""
    monkeypatch.setattr("probq.training.refinement.trials.FEWEST", 1)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes fits stop as soon as they have written so many checkpoints."""
    write = CheckpointFolder.write

    def set_writes(number: int) -> None:
        left = itertools.count(number - 1, -1)

        def stopping(self: CheckpointFolder, *content: Any) -> Path:
            path = write(self, *content)
            if not next(left):
                raise Killed
            return path

        monkeypatch.setattr(CheckpointFolder, "write", stopping)

    return set_writes


class Noisy(Dataset[Any]):
    """Data that is augmented with random numbers of three libraries."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        noise = float(torch.rand(())) + random.random() + np.random.rand()  # noqa: NPY002
        return X[place] + 0.01 * noise, Y[place]


class Shuffling:
    """Batches with a generator of their own."""

    def __init__(self) -> None:
        self.order = np.random.default_rng(3)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return (PAIRS[k] for k in self.order.permutation(3))


def with_generators() -> DataLoader[Any]:
    sampler = RandomSampler(X[:48], generator=torch.Generator().manual_seed(5))  # type: ignore[arg-type]
    return DataLoader(TensorDataset(X[:48], Y[:48]), 16, sampler=sampler, generator=torch.Generator().manual_seed(6))


def decided() -> Quantized:
    q = network()
    return q.at(q.mode(BUDGET))


def channels_last() -> Quantized:
    """Its optimizer's averages have the order of its weights, which a fused step takes for granted."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)).eval()
    q = probq.quantize(net.to(memory_format=torch.channels_last), IMAGES)
    assert not q.net[0].weight.is_contiguous()
    return q


def float_network() -> nn.Module:
    """It draws random numbers where it learns."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def warm(optimizer: Any, steps: int) -> Any:
    first = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.MultiStepLR(optimizer, [1, 2, 2])], [2])


def cycle(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)


def plateau(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)


LAW = probq.likelihoods.Categorical(weight=[1.0, 2.0, 0.5], ignore_index=1, smoothing=0.1)
FITS: dict[str, tuple[Callable[[], Quantized], Callable[[], Any], dict[str, Any]]] = {
    "without a seed": (network, shuffled, {"epochs": 3, "seed": None}),
    "generators": (network, with_generators, {"epochs": 3}),
    "own generator": (network, Shuffling, {"epochs": 3}),
    "augmented": (network, lambda: DataLoader(Noisy(), 16, shuffle=True), {"epochs": 3}),
    "pairs, PID, two budgets": (network, lambda: PAIRS, {"epochs": 3, "rule": PID(), "budget": COSTS}),
    "guided gates": (network, lambda: PAIRS, {"epochs": 3, "rule": ConstraintGuided()}),
    "several draws": (network, lambda: PAIRS, {"epochs": 3, "draws": 3, "search": 1.0}),
    "codes drawn": (network, lambda: PAIRS, {"epochs": 3, "rounding": False, "optimizer": torch.optim.SGD}),
    "channels last": (channels_last, lambda: [(IMAGES[:48], Y[:48])], {"epochs": 9}),
    "decided": (decided, shuffled, {"epochs": 3, "budget": None}),
    "taught": (network, lambda: PAIRS, {"teacher": float_network()}),
    "taught online": (network, lambda: PAIRS, {"teacher": probq.distillation.online(float_network(), 1e-2)}),
    "taught by itself": (network, shuffled, {"teacher": probq.distillation.itself(0.9)}),
    "aids": (network, shuffled, {"clip": 0.5, "average": 0.9, "accumulate": 2, "likelihood": LAW}),
    "schedules": (network, lambda: PAIRS, {"rates": Rates(1e-2, schedule=cycle, search_schedule=warm)}),
    "plateau": (network, lambda: PAIRS, {"rates": Rates(1e-2, schedule=plateau, search_schedule=plateau)}),
    "chance": (network, lambda: PAIRS, {"epochs": 3, "budget": Budget(percent=1.5, probability=0.9)}),
}


@pytest.mark.filterwarnings("ignore:the search could not make")
@pytest.mark.parametrize(("make", "data", "options"), FITS.values(), ids=FITS.keys())
def test_a_fit_goes_on_to_the_same_bits(
    tmp_path: Path, killed: Any, make: Callable[[], Quantized], data: Callable[[], Any], options: dict[str, Any]
) -> None:
    def seeded(folder: Path | None) -> tuple[Quantized, Any]:
        q = make()
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)
        return q, call(q, folder, data(), validation=None, **options)

    whole, history = seeded(None)
    after = torch.rand(2), np.random.rand(), random.random()  # noqa: NPY002
    killed(10**9)
    watched, _ = seeded(tmp_path / "watched")
    assert same(tensors(whole), tensors(watched))
    total = int(next(iter(CheckpointFolder(tmp_path / "watched").files())).stem.split("-")[1])
    for number in (total // 2, total - 1):
        folder = tmp_path / str(number)
        killed(number)
        with pytest.raises(Killed):
            seeded(folder)
        killed(10**9)
        q, again = seeded(folder)
        assert same(tensors(q), tensors(whole)), number
        assert again.to_frame().equals(history.to_frame())
        assert again.validation == history.validation
        now = torch.rand(2), np.random.rand(), random.random()  # noqa: NPY002
        assert torch.equal(now[0], after[0])
        assert now[1:] == after[1:]
        assert q.mode() == whole.mode()


def test_a_fit_that_stops_early_goes_on_to_the_same_end(tmp_path: Path, killed: Any) -> None:
    def run(folder: Path | None) -> tuple[Quantized, Any]:
        q, held_out = decided(), DataLoader(TensorDataset(X[48:], 2 - Y[48:]), 16)
        return q, call(q, folder, budget=None, patience=1, validation=held_out, average=0.5)

    whole, history = run(None)
    assert 3 < len(history.steps) < 24
    stops = 0
    while True:
        killed(1)
        try:
            q, again = run(tmp_path / "run")
        except Killed:
            stops += 1
            continue
        break
    assert stops > 2
    assert same(tensors(q), tensors(whole))
    assert again.to_frame().equals(history.to_frame())
    q, again = run(tmp_path / "run")  # finished
    assert same(tensors(q), tensors(whole))
    assert len(again.steps) == len(history.steps)


def test_a_fit_stopped_in_every_phase_again_and_again_comes_to_its_end(tmp_path: Path, killed: Any) -> None:
    whole, stops = network(), 0
    history = call(whole, None)
    killed(10**9)
    while True:
        q = network()
        killed(2)
        try:
            again = call(q, tmp_path / "run", every=1)
        except Killed:
            stops += 1
            continue
        break
    assert stops > 12
    assert same(tensors(q), tensors(whole))
    assert again.to_frame().equals(history.to_frame())
    assert set(again.to_frame().phase) == {"search", "trial", "tune"}
