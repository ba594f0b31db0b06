"""Several processes: the same numbers, what is raised there is raised here, and what was measured is kept."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Plan, ProbqError, criteria
from probq.codebooks import ladder
from probq.criteria.measuring import processes
from probq.criteria.measuring.measure import mean_loss, measured, single_choices
from probq.criteria.measuring.perturbed import PerturbedNetwork

pytestmark = pytest.mark.filterwarnings("ignore:.*energies of")  # of networks that were never trained
X, Y = torch.rand(24, 5, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
DATA = [(X[:16], Y[:16]), (X[16:], Y[16:])]


class Net(nn.Sequential):
    """A network whose class other processes find here."""


def network() -> probq.Quantized:
    torch.manual_seed(0)
    net = Net(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    return probq.quantize(net, X, Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=True)))


class Strange(Exception):
    """An error that cannot be made again from its arguments, and so not be sent."""

    def __init__(self, text: str, more: int) -> None:
        super().__init__(text)


def refused(own: PerturbedNetwork, widths: Mapping[str, int]) -> float:
    if widths:  # the widest rungs are measured in this process
        raise ProbqError(f"nothing at {dict(widths)}")
    return 0.0


def strange(own: PerturbedNetwork, widths: Mapping[str, int]) -> float:
    if widths:
        raise Strange("odd", 3)
    return 0.0


def ended(own: PerturbedNetwork, widths: Mapping[str, int]) -> float:
    if widths:
        os._exit(3)
    return 0.0


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes come from a server that has imported everything once, so that not each one does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "probq.criteria.clado", "probq.criteria.kl"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_an_interrupted_measurement_goes_on_and_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, path, waits, wait = network(), tmp_path / "m.json", 0, processes.wait

    def interrupted(connections: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits == 5:
            raise KeyboardInterrupt
        return wait(connections)

    with monkeypatch.context() as patched:
        patched.setattr(processes, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            criteria.clado(q, DATA, resume=path, processes=2, progress=False)
    assert multiprocessing.active_children() == []
    kept = len(json.loads(path.read_text())["values"])
    assert 5 <= kept <= 9  # one or two at each look, and the widest rungs
    several = criteria.clado(q, DATA, resume=path, processes=2, progress=False)
    assert len(json.loads(path.read_text())["values"]) > kept
    one = criteria.clado(q, DATA, progress=False)
    assert all(map(np.array_equal, several.unary, one.unary))
    assert np.array_equal(several.pairwise, one.pairwise)  # type: ignore[arg-type]
    assert multiprocessing.active_children() == []


def test_processes_that_import_for_themselves_measure_the_same() -> None:
    """One of them, as there is but one choice."""
    q, unlabelled = probq.quantize(Net(nn.Linear(5, 3)).eval(), X, Plan(weight=ladder(2, 8))), [x for x, _ in DATA]
    found = [criteria.kl(q, unlabelled, processes=n, progress=False) for n in (1, 2)]
    assert all(map(np.array_equal, found[0].unary, found[1].unary))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("measure", "error", "message"),
    [
        (refused, ProbqError, "nothing at"),
        (strange, RuntimeError, "Strange: odd"),
        (ended, ProbqError, "ended by itself"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told_here(measure: Any, error: Any, message: str) -> None:
    own = PerturbedNetwork(network(), DATA)
    with pytest.raises(error, match=message) as caught:
        measured(own, single_choices(own)[:1], measure, None, False, processes=2)
    assert measure is ended or measure.__name__ in "".join(caught.value.__notes__)  # where it was raised
    assert multiprocessing.active_children() == []


def test_what_cannot_be_sent_is_told() -> None:
    class Local(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    q = probq.quantize(Local(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), X, Plan(weight=ladder(2, 8)))
    with pytest.raises(ProbqError, match=r"cannot be sent to another process.*processes=1"):
        criteria.loss(q, DATA, processes=2, progress=False)
    for wrong in (0, 1.5, None):
        with pytest.raises(ProbqError, match="processes must be an integer"):
            criteria.loss(q, DATA, processes=wrong, progress=False)  # type: ignore[arg-type]


def test_a_network_made_again_measures_the_same() -> None:
    own = PerturbedNetwork(network(), DATA, of="weights")
    again = torch.load(io.BytesIO(processes._packed(own)), weights_only=False)
    assert (again.names, again.perturbed, again.operations) == (own.names, own.perturbed, own.operations)
    for choice in single_choices(own):
        assert mean_loss(again, dict(choice)) == mean_loss(own, dict(choice))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_and_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, probq\n"
        "x, plan = torch.rand(512, 64), probq.Plan(weight=probq.codebooks.ladder(4, 8))\n"  # more than a pipe holds
        "q = probq.quantize(torch.nn.Linear(64, 10).eval(), x, plan)\n"
        "probq.criteria.loss(q, [(x, torch.arange(512) % 10)], processes=2, progress=False)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "stands below `if __name__" in done.stderr
