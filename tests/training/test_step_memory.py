"""The memory of a step as estimated, by hand and as torch's profiler has found it."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import probq
from probq import ProbqError
from probq.codebooks import ladder
from probq.testing import lenet5, vgg7
from probq.training import step_memory as module

X = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 2
RECORD = Path(__file__).parents[2] / "benchmarks" / "results_memory.jsonl"


def network() -> probq.Quantized:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return probq.quantize(nn.Sequential(*parts, nn.Linear(2048, 2)).eval(), X[:8])


@pytest.mark.skipif(not RECORD.exists(), reason="a source distribution has no benchmarks")
@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [("LeNet-5", lenet5, (128, 1, 28, 28)), ("VGG-7, a quarter", lambda: vgg7(0.25), (64, 3, 32, 32))],
)
def test_the_estimate_is_near_the_peak_that_was_measured(name: str, make: Any, shape: tuple[int, ...]) -> None:
    """The record has the peaks of torch's profiler, of `benchmarks/memory.py`."""
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    peak = next(row["bytes"]["search"] for row in rows if row["network"] == name)
    plan = probq.Plan(weight=ladder(1, 2, 4, 8), input=ladder(1, 2, 4, 8, signed=False))
    x = torch.rand(shape)
    found = probq.step_memory(probq.quantize(make(), x[:8], plan), (x, torch.arange(len(x)) % 10))
    assert 0.88 * peak < found.total < 1.02 * peak


def test_parts_are_those_by_hand() -> None:
    q = network()
    state = sum(t.numel() * t.element_size() for t in (*q.parameters(), *q.buffers()))
    whole, half = probq.step_memory(q, (X, Y)), probq.step_memory(q, (X[:32], Y[:32]))
    assert whole.parameters == 2 * state
    assert whole.batch - half.batch == 32 * (whole.example + 16 * 16 * 4 + 8)
    assert whole.example >= 2 * 8 * 16 * 16 * 4  # outputs of both convolutions
    assert whole.total == whole.parameters + whole.optimizer + whole.batch


def test_a_step_that_does_not_fit_is_refused_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    q = network()
    need = probq.step_memory(q, (X, Y))
    free = need.parameters + need.optimizer + 20 * need.example
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    with pytest.raises(ProbqError, match=r"a step needs about .* GiB: .* batches of at most 20 examples; accumulate=4"):
        probq.fit(q, [(X, Y)], progress=False)
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    with pytest.raises(ProbqError, match="use a device with more memory"):
        probq.fit(q, [(X, Y)], progress=False)


def test_an_estimate_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, checked = network(), network()
    list(probq.steps(plain, [(X, Y)], epochs=1, seed=0))
    monkeypatch.setattr(module, "KEPT_PER_MAC", 1e12)
    list(probq.steps(checked, [(X, Y)], epochs=1, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), checked.parameters(), strict=True))


def test_free_memory_is_the_least_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    5 kB\n")
    assert module._free_of_machine(str(tmp_path / "meminfo")) == 5 * 1024
    assert module._free_of_machine(str(tmp_path / "absent")) is None
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("1500\n")
    assert module._free_of_group(str(tmp_path)) == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert module._free_of_group(str(tmp_path)) is None
    assert module._free_of_group(str(tmp_path / "absent")) is None
    assert module.free_memory(torch.device("meta")) is None


def test_nothing_of_the_estimate_stays_in_memory() -> None:
    seen: list[Any] = []
    net = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2))  # autograd keeps what the second one returns
    q = probq.quantize(net, torch.rand(8, 3))
    q.net[1].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    probq.step_memory(q, (torch.rand(8, 3), torch.arange(8) % 2))
    gc.collect()
    assert seen
    assert all(ref() is None for ref in seen)
