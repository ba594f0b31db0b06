"""Studies of several fits go on in the fit that was stopped, and make no finished one again."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import X, Y, network, same, tensors

import probq
from probq import Budget, Plan
from probq.codebooks import ladder
from probq.training.checkpoints.folder import CheckpointFolder

PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the process stop once, after so many checkpoints."""
    write = CheckpointFolder.write

    def after(number: int) -> None:
        left = itertools.count(number - 1, -1)

        def stopping(self: CheckpointFolder, *content: Any) -> Path:
            path = write(self, *content)
            if not next(left):
                raise KeyboardInterrupt
            return path

        monkeypatch.setattr(CheckpointFolder, "write", stopping)

    return after


def test_a_front_goes_on_in_the_fit_that_was_stopped(tmp_path: Path, stops: Any) -> None:
    net = network().net

    def front(folder: Path | None) -> probq.Pareto:
        budgets = [Budget(percent=3), Budget(percent=1.5)]
        plan = Plan(weight=ladder(1, 2, 4, 8), profile="dyadic")
        return probq.pareto(net, X, PAIRS, budgets, 3, plan=plan, folder=folder, seed=0, progress=False)

    whole = front(None)
    stops(8)
    with pytest.raises(KeyboardInterrupt):
        front(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".safetensors"]
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 1
    again = front(tmp_path)
    assert all(same(tensors(a), tensors(b)) for a, b in zip(whole.networks, again.networks, strict=True))
    assert again.table.drop(columns="widths").equals(whole.table.drop(columns="widths"))
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:the restarts disagree")
def test_restarts_go_on_in_the_fit_that_was_stopped(tmp_path: Path, stops: Any) -> None:
    def chains(folder: Path | None) -> list[probq.Quantized]:
        return probq.restarts(network(), PAIRS, None, 2, chains=2, checkpoint=folder, progress=False)

    whole = chains(None)
    stops(7)
    with pytest.raises(KeyboardInterrupt):
        chains(tmp_path)
    assert [len(list(folder.iterdir())) for folder in sorted(tmp_path.iterdir())] == [2, 2]
    again = chains(tmp_path)
    assert all(same(tensors(a), tensors(b)) for a, b in zip(whole, again, strict=True))
