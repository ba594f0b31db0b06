"""Compressed gradients: bytes by hand, means by enumeration, nothing lost by feedback, two processes at one optimum."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from probq import ProbqError, communication
from probq.training.communication.packing import pack, per_byte, unpack

GRADIENT = torch.tensor([0.3, -1.2, 0.0, 0.8, -0.05])
UNBIASED = {
    "2 bits": communication.qsgd(2, chunk=5),
    "4 bits": communication.qsgd(4, chunk=3),
    "8 bits": communication.qsgd(8),
    "ternary": communication.ternary(),
}


@pytest.mark.parametrize(
    ("base", "each"), [(2, 8), (3, 5), (4, 4), (7, 2), (15, 2), (16, 2), (17, 1), (255, 1), (256, 1)]
)
def test_codes_are_packed_without_loss(base: int, each: int) -> None:
    codes = torch.arange(3 * base + 1) % base
    data = pack(codes, base)
    assert per_byte(base) == each == math.floor(math.log(256) / math.log(base) + 1e-9)
    assert len(data) == -(-len(codes) // each)
    assert torch.equal(unpack(data, base, len(codes)), codes)


@pytest.mark.parametrize(
    ("compression", "count", "expected"),
    [
        (communication.qsgd(4, chunk=512), 1000, 2 * 4 + 500),
        (communication.qsgd(8, chunk=100), 1000, 10 * 4 + 1000),
        (communication.qsgd(2, chunk=512), 1000, 2 * 4 + 200),
        (communication.ternary(), 1001, 4 + 201),
        (communication.sign(), 1001, 4 + 126),
    ],
)
def test_bytes_are_those_by_hand(compression: Any, count: int, expected: int) -> None:
    gradient = torch.randn(count, generator=torch.Generator().manual_seed(0))
    assert len(compression.encode(gradient)) == compression.bytes_of(count) == expected
    assert len(compression.decode(compression.encode(gradient), count)) == count


@pytest.mark.parametrize("kind", UNBIASED)
def test_the_mean_over_all_draws_is_the_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of `u` in the middles of 1,000 equal parts of [0, 1), the same for all numbers."""
    compression, parts = UNBIASED[kind], 1000
    total = torch.zeros(5, dtype=torch.float64)
    for k in range(parts):
        monkeypatch.setattr(torch, "rand_like", lambda t, k=k: torch.full_like(t, (k + 0.5) / parts))
        total += compression.decode(compression.encode(GRADIENT), 5)
    torch.testing.assert_close((total / parts).float(), GRADIENT, rtol=0, atol=2 / parts)


def test_draws_of_numbers_are_independent_and_of_the_right_variance() -> None:
    torch.manual_seed(0)
    compression, draws = communication.ternary(), 4000
    found = torch.stack([compression.decode(compression.encode(GRADIENT), 5) for _ in range(draws)]).double()
    size, largest = GRADIENT.abs().double(), 1.2
    variance = (size * largest - size**2).clamp_min(0)  # of m sign(v) b
    assert ((found.mean(0) - GRADIENT).abs() <= 5 * (variance / draws).sqrt() + 1e-6).all()
    torch.testing.assert_close(found.var(0), variance, rtol=0.15, atol=1e-6)
    for a, b in itertools.combinations((0, 3, 4), 2):
        bound = 5 * (variance[a] * variance[b] / draws).sqrt()
        assert abs(float(torch.cov(found[:, [a, b]].T)[0, 1])) < bound


def test_signs_have_the_mean_size() -> None:
    compression = communication.sign()
    found = compression.decode(compression.encode(GRADIENT), 5)
    torch.testing.assert_close(found, 0.47 * torch.tensor([1.0, -1, 1, 1, -1]))


@pytest.mark.parametrize("compression", [*UNBIASED.values(), communication.sign()])
def test_no_gradient_is_none_and_no_number_stays_none(compression: Any) -> None:
    assert torch.equal(compression.decode(compression.encode(torch.zeros(7)), 7), torch.zeros(7))
    broken = torch.tensor([1.0, math.nan, 2.0])
    assert compression.decode(compression.encode(broken), 3).isnan().all()


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: communication.qsgd(1), "2 to 8 bits, not 1"),
        (lambda: communication.qsgd(9), "2 to 8 bits, not 9"),
        (lambda: communication.qsgd(4, chunk=0), "1 or more, not 0"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        make()


# Two processes


def data() -> tuple[Tensor, Tensor, Tensor]:
    """A linear regression without noise, whose optimum is known."""
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(64, 6, generator=generator), torch.randn(6, 1, generator=generator)
    return x, x @ w, w


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, y, _ = data()
    x, y = x[rank::2], y[rank::2]
    kinds = {"qsgd": communication.qsgd(4), "ternary": communication.ternary(), "sign": communication.sign()}
    found: dict[str, Any] = {}
    for name, compression in kinds.items():
        torch.manual_seed(10 + rank)  # each process draws for itself
        net = nn.Linear(6, 1, bias=False)
        model = DistributedDataParallel(net)
        model.register_comm_hook(compression, communication.average)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        applied, asked = torch.zeros(6), torch.zeros(6)
        for _ in range(300):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            applied += net.weight.grad[0]
            with torch.no_grad():
                asked += (2 / len(x)) * ((x @ net.weight.T - y) * x).sum(0)
            optimizer.step()
        left = compression.left.get(net.weight, torch.zeros(6))
        found[name] = {
            "weight": net.weight.detach()[0],
            "bytes": torch.tensor([compression.sent, compression.uncompressed]),
            "applied": applied,
            "asked": asked,
            "left": left.detach(),
        }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["qsgd", "ternary", "sign"])
def test_two_processes_reach_the_same_optimum(runs: list[dict[str, Any]], kind: str) -> None:
    first, second = (run[kind] for run in runs)
    assert torch.equal(first["weight"], second["weight"])
    torch.testing.assert_close(first["weight"], data()[2][:, 0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("kind", "each"), [("qsgd", 4 + 3), ("ternary", 4 + 2), ("sign", 4 + 1)])
def test_bytes_sent_are_counted(runs: list[dict[str, Any]], kind: str, each: int) -> None:
    for run in runs:
        assert run[kind]["bytes"].tolist() == [300 * each, 300 * 24]


def test_what_signs_leave_out_is_not_lost(runs: list[dict[str, Any]]) -> None:
    first, second = (run["sign"] for run in runs)
    asked, left = (first["asked"] + second["asked"]) / 2, (first["left"] + second["left"]) / 2
    torch.testing.assert_close(first["applied"] + left, asked, rtol=1e-3, atol=1e-4)
