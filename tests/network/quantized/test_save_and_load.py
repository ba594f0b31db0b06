"""The posterior's file: what is loaded equals what was saved, and whatever is wrong with a file is said."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace

import probq
from probq.codebooks import ladder, learned, powers_of_two
from probq.likelihoods import Normal
from probq.network.quantized.file_format import read
from probq.network.quantized.load import assemble

BATCHES = 4


def convolutional() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    return net.train(False)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(16, 1, 6, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


class Tied(nn.Module):
    """Two linear layers with one weight, and a buffer."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        if tie:
            self.second.weight = self.first.weight
        self.register_buffer("offset", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) + self.offset)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 4, generator=generator)


def laplace(output: Tensor) -> Distribution:
    return Laplace(output, 1.0)


def fitted(net: nn.Module, data: tuple[Tensor, Tensor], plan: probq.Plan, percent: float = 2.0, **options: Any) -> Any:
    q = probq.quantize(net, data[0], plan)
    probq.fit(q, [data] * BATCHES, probq.Budget(percent=percent), epochs=2, progress=False, seed=0, **options)
    return q


CASES: dict[str, Callable[[], tuple[Any, nn.Module, Tensor]]] = {
    "two widths": lambda: (
        fitted(convolutional(), images(), probq.Plan(weight=ladder(2, 8))),
        convolutional(),
        images()[0],
    ),
    "learned levels, scale of the tensor": lambda: (
        fitted(convolutional(), images(), probq.Plan(weight=ladder(0, learned([-1, 0, 1]), 4), scales="tensor")),
        convolutional(),
        images()[0],
    ),
    "powers of two, one code": lambda: (
        fitted(convolutional(), images(), probq.Plan(weight=ladder(2, powers_of_two(4)), codes=1)),
        convolutional(),
        images()[0],
    ),
    "tied, normal": lambda: (fitted(Tied(), rows(), probq.Plan()), Tied(), rows()[0]),
    "normal with sd": lambda: (fitted(Tied(), rows(), probq.Plan(), likelihood=Normal(0.3)), Tied(), rows()[0]),
    "channel gates": lambda: (
        fitted(convolutional(), images(), probq.Plan(gates="channel")),
        convolutional(),
        images()[0],
    ),
    "weight gates": lambda: (
        fitted(convolutional(), images(), probq.Plan(gates="weight", codes=3)),
        convolutional(),
        images()[0],
    ),
}


@pytest.fixture(scope="module")
def q() -> Any:
    return CASES["two widths"]()[0]


@pytest.fixture
def file(q: Any, tmp_path: Path) -> Path:
    q.save(tmp_path / "q.safetensors")
    return tmp_path / "q.safetensors"


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.filterwarnings("ignore:at 0 bits of")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_loaded_equals_saved(case: Callable[[], tuple[Any, nn.Module, Tensor]], tmp_path: Path) -> None:
    q, net, x = case()
    q.save(tmp_path / "q")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = probq.load(tmp_path / "q", net)
    assert other.mode() == q.mode()
    assert torch.equal(other(x), q(x))
    assert all(map(torch.equal, other.outputs(other.sample(2, seed=5), x), q.outputs(q.sample(2, seed=5), x)))
    pandas.testing.assert_frame_equal(probq.table(other), probq.table(q), check_exact=True)
    assert probq.table(other).attrs == probq.table(q).attrs
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert (other.layers, other.notes, other.signature) == (q.layers, q.notes, q.signature)
    assert {n: p.requires_grad for n, p in other.named_parameters()} == {
        n: p.requires_grad for n, p in q.named_parameters()
    }


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.filterwarnings("ignore:at 0 bits of")
@pytest.mark.parametrize("name", ["two widths", "tied, normal", "learned levels, scale of the tensor"])
def test_fit_continues_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    q, net, x = CASES[name]()
    q.save(tmp_path / "q")
    other = probq.load(tmp_path / "q", net)
    data = images() if x.dim() == 4 else rows()
    for each in (q, other):
        probq.fit(each, [data] * BATCHES, probq.Budget(percent=3), epochs=2, progress=False, seed=7)
    states = q.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["two widths", "tied, normal", "channel gates"])
def test_fixed_widths_stay_fixed(name: str, tmp_path: Path) -> None:
    q, net, x = CASES[name]()
    draw = q.sample(1, seed=3)[0]
    decided = q.at(draw)
    decided.save(tmp_path / "q")
    other = probq.load(tmp_path / "q", net)
    assert other.folded
    assert other.mode().widths.keys() == draw.widths.keys()
    assert all(np.array_equal(other.mode().widths[key], draw.widths[key]) for key in draw.widths)
    assert other.mode() == decided.mode()
    assert torch.equal(other(x), decided(x))


def test_loaded_networks_lower_to_the_same_integers(q: Any, file: Path) -> None:
    other = probq.load(file, convolutional())
    assert probq.lower(other, other.mode()).sha256() == probq.lower(q, q.mode()).sha256()


def test_unfitted_network(tmp_path: Path) -> None:
    q = probq.quantize(convolutional(), images()[0])
    q.save(tmp_path / "q")
    other = probq.load(tmp_path / "q", convolutional())
    assert (other.likelihood, other.budget, other.calibrated, other.temperature) == (None, None, False, 1.0)
    assert other.training == q.training


def test_same_posterior_gives_same_bytes(q: Any, file: Path, tmp_path: Path) -> None:
    probq.load(file, convolutional()).save(tmp_path / "again")
    assert file.read_bytes() == (tmp_path / "again").read_bytes()


def test_file_holds_the_state_as_it_is(q: Any, file: Path) -> None:
    """Read by safetensors alone."""
    stored = load_file(file)
    assert stored.keys() == q.state_dict().keys()
    assert all(torch.equal(stored[key], tensor) for key, tensor in q.state_dict().items())
    with safe_open(file, "numpy") as opened:
        manifest = json.loads(opened.metadata()["probq"])
    assert manifest["format"] == "probq.posterior"
    assert manifest["quantizers"]["0.weight"]["ladder"][0] == {"start": -1, "step": 1, "count": 3}
    assert manifest["budget"] == {"percent": 2.0, "limit": None, "cost": "bops"}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_tied_weight_is_stored_once(tmp_path: Path) -> None:
    q = probq.quantize(Tied(), rows()[0])
    q.save(tmp_path / "q")
    assert ("net.first.weight" in load_file(tmp_path / "q")) + ("net.second.weight" in load_file(tmp_path / "q")) == 1
    other = probq.load(tmp_path / "q", Tied())
    assert other.net.first.weight is other.net.second.weight


@pytest.mark.parametrize(
    "budget", [probq.Budget(percent=1), probq.Budget(limit=5e4), probq.Budget(percent=20, cost=probq.cost.storage)]
)
def test_budget_is_kept(budget: probq.Budget, tmp_path: Path) -> None:
    q = probq.quantize(convolutional(), images()[0])
    q.budget = budget
    q.save(tmp_path / "q")
    assert probq.load(tmp_path / "q", convolutional()).budget == budget


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_own_cost_and_likelihood_are_named_in_notes(tmp_path: Path) -> None:
    def latency(layer: probq.Layer, w: Any, a: Any) -> Any:
        return layer.macs * w

    q = probq.quantize(Tied(), rows()[0], likelihood=laplace)
    q.budget = probq.Budget(limit=100, cost=latency)
    q.save(tmp_path / "q")
    with pytest.warns(UserWarning, match="latency|laplace") as caught:
        other = probq.load(tmp_path / "q", Tied())
    assert len(caught) == 2
    assert other.budget is None
    assert other.likelihood is None
    assert "cost=latency" in other.notes[-2]
    assert "likelihood laplace" in other.notes[-1]
    assert not any("latency" in note or "laplace" in note for note in q.notes)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_module_as_likelihood_is_left_out(tmp_path: Path) -> None:
    class Scaled(Normal):
        pass

    q = probq.quantize(Tied(), rows()[0], likelihood=Scaled())
    q.save(tmp_path / "q")
    with pytest.warns(UserWarning, match="Scaled"):
        assert probq.load(tmp_path / "q", Tied()).likelihood is None


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_normal_likelihood_keeps_its_noise(tmp_path: Path) -> None:
    for likelihood in (Normal(0.25), Normal()):
        q = probq.quantize(Tied(), rows()[0], likelihood=likelihood)
        q.save(tmp_path / "q")
        other = probq.load(tmp_path / "q", Tied()).likelihood
        assert isinstance(other, Normal)
        assert torch.equal(other.log_sd, likelihood.log_sd)
        assert other.log_sd.requires_grad == likelihood.log_sd.requires_grad
    assert math.isclose(Normal(0.25).log_sd.item(), math.log(0.25), rel_tol=1e-6)


def test_checkpoint_in_fine_tuning_can_be_loaded(tmp_path: Path) -> None:
    q = probq.quantize(convolutional(), images()[0])
    options = {"epochs": 2, "search": 0.5, "progress": False, "seed": 0}
    probq.fit(q, [images()] * 4, probq.Budget(percent=2), checkpoint=tmp_path / "q.safetensors", **options)
    other = probq.load(tmp_path / "q.safetensors", convolutional())
    assert other.mode().percent() <= 2


def test_double_precision(tmp_path: Path) -> None:
    q = probq.quantize(convolutional(), images()[0]).double()
    with torch.no_grad():
        q.quantizer("0.weight").logits.fill_(1 / 3)
    q.save(tmp_path / "q")
    other = probq.load(tmp_path / "q", convolutional().double())
    assert other.quantizer("0.weight").logits.dtype == torch.float64
    assert torch.equal(other.quantizer("0.weight").logits, q.quantizer("0.weight").logits)


# Other networks


def wider() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3))


NETWORKS = {
    "other shape": (wider, r"0\.weight is float32 \[4, 1, 3, 3\] in it and float32 \[5, 1, 3, 3\]"),
    "other type": (lambda: convolutional().double(), "float32 .* in it and float64"),
    "fewer": (lambda: convolutional()[:4], "its 4.bias is not in the network given"),
    "more": (lambda: nn.Sequential(*convolutional(), nn.Linear(3, 3)), "5.weight of the network given is not in it"),
}


@pytest.mark.parametrize(("make", "message"), NETWORKS.values(), ids=NETWORKS.keys())
def test_another_network(file: Path, make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(probq.ProbqError, match=f"posterior of another network: .*{message}"):
        probq.load(file, make())


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_network_without_the_ties(tmp_path: Path) -> None:
    probq.quantize(Tied(), rows()[0]).save(tmp_path / "q")
    with pytest.raises(probq.ProbqError, match="are one tensor in it, but not in the network given"):
        probq.load(tmp_path / "q", Tied(tie=False))


def test_no_network(file: Path) -> None:
    with pytest.raises(probq.ProbqError, match="takes the network that was quantized"):
        probq.load(file, {"state": 1})  # type: ignore[arg-type]


def test_a_file_that_names_no_profile_has_powers_of_two(tmp_path: Path) -> None:
    """Files of before there was another profile; the default of plans is none of theirs."""
    q = fitted(convolutional(), images(), probq.Plan(weight=ladder(2, 8), profile="shift"))
    q.save(tmp_path / "q")

    def change(manifest: dict[str, Any], _: dict[str, Tensor]) -> None:
        for name in q.weight_names:
            manifest["quantizers"][name].pop("profile")

    rewritten(tmp_path / "q", change, sign=True)
    other = probq.load(tmp_path / "q", convolutional())
    assert torch.equal(other(images()[0]), q(images()[0]))
    scales = [weight.scales() for weight in other.weights.values()]
    assert all(torch.equal(scale.log2(), scale.log2().round()) for scale in scales)


# Files that are wrong


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], sign: bool = False) -> None:
    with safe_open(path, "numpy") as opened:
        manifest = json.loads(opened.metadata()["probq"])
    tensors = load_file(path)
    change(manifest, tensors)
    if sign:
        manifest.pop("sha256")
        manifest["sha256"] = signature(manifest, tensors)
    save_file(tensors, path, {"probq": json.dumps(manifest)})


def signature(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """The hash, computed apart from the library."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    for name in sorted(tensors):
        tensor = tensors[name]
        text += f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()
    return hashlib.sha256(text).hexdigest()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def edit(name: str, value: Any, sign: bool = False) -> Callable[[Path], object]:
    return lambda path: rewritten(path, lambda manifest, _: manifest.__setitem__(name, value), sign)


def integer_model(path: Path) -> None:
    q = CASES["two widths"]()[0]
    probq.lower(q, q.mode()).save(path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "there is no file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "empty": (text(""), "not a safetensors file"),
    "text": (text("hello, this is no posterior"), "not a safetensors file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not a safetensors file, or is damaged"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:300]), "not a safetensors file, or is damaged"),
    "last bit": (lambda path: flip(path, -1), "SHA-256"),
    "foreign": (lambda path: save_file({"a": torch.zeros(3)}, path), "probq did not write it"),
    "no manifest": (lambda path: save_file({"a": torch.zeros(3)}, path, {"probq": "{"}), "not JSON"),
    "other manifest": (lambda path: save_file({"a": torch.zeros(3)}, path, {"probq": "[1]"}), "its format is None"),
    "integer model": (integer_model, r"load it with probq\.IntegerModel\.load"),
    "version": (edit("version", 2), "its version is 2"),
    "temperature": (edit("temperature", 1), "SHA-256"),
    "no hash": (edit("sha256", None), "SHA-256"),
    "tensor": (lambda path: rewritten(path, lambda _, t: t["net.0.weight"].zero_()), "SHA-256"),
    "signed, no layers": (edit("layers", None, sign=True), "not a valid posterior"),
    "signed, odd layer": (edit("layers", [{"name": "a"}], sign=True), "not a valid posterior"),
    "signed, odd budget": (edit("budget", {"percent": -1, "limit": None, "cost": "bops"}, True), "not a valid post"),
    "signed, odd cost": (edit("budget", {"percent": 1, "limit": None, "cost": "os.system"}, True), "not a valid post"),
    "signed, no quantizers": (edit("quantizers", {}, sign=True), "not a valid posterior"),
    "signed, tensor missing": (
        lambda path: rewritten(path, lambda _, t: t.pop("quantizers.0/weight.logits"), True),
        "do not match at 'quantizers.0/weight.logits'",
    ),
    "signed, tensor reshaped": (
        lambda path: rewritten(path, lambda _, t: t.update({"quantizers.0/weight.logits": torch.zeros(7)}), True),
        "not a valid posterior",
    ),
    "signed, ladder falls": (
        lambda path: rewritten(path, lambda m, _: m["quantizers"]["0.weight"]["ladder"].reverse(), True),
        "not a valid posterior",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_file(file: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(file)
    with pytest.raises(probq.ProbqError, match=message) as caught:
        probq.load(file, convolutional())
    assert str(file) in str(caught.value)


def positions(length: int) -> Iterator[int]:
    return iter(np.random.default_rng(0).integers(0, length, 60).tolist())


def test_no_damaged_byte_goes_unseen(file: Path) -> None:
    intact = file.read_bytes()
    for position in positions(len(intact)):
        flip(file, position)
        with pytest.raises(probq.ProbqError):
            probq.load(file, convolutional())
        file.write_bytes(intact)


def test_cannot_write(q: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "q", tmp_path):
        with pytest.raises(probq.ProbqError, match="cannot write"):
            q.save(path)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_keeps_the_old_file(file: Path, q: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(probq.ProbqError, match="no space left"):
        q.save(file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_read_without_the_network(q: Any, file: Path) -> None:
    manifest, tensors = read(file)
    bare = assemble(file, manifest, tensors)
    pandas.testing.assert_frame_equal(probq.table(bare), probq.table(q), check_exact=True)
