"""A posterior belongs to one network: what computes something else is refused, whatever its names and shapes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import probq
from probq.network.quantized.file_format import write
from probq.network.quantized.fingerprint import fingerprint

X = torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5


def stacked(activation: nn.Module | None = None, eps: float = 1e-5, **convolution: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"padding": 1, **convolution}
    layers = (nn.Conv2d(2, 4, 3, **options), nn.BatchNorm2d(4, eps=eps), activation or nn.ReLU(), nn.Conv2d(4, 4, 3))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class Written(nn.Module):
    """A network whose forward is a function, with a constant that no state_dict holds."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], constant: float = 2.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(4, 4), nn.Linear(4, 4), forward
        self.constant = torch.tensor([constant, 1, 1, 1])
        self.register_buffer("hidden", torch.tensor(constant), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def written(forward: Callable[[Any, Tensor], Tensor], constant: float = 2.0) -> Callable[[], nn.Module]:
    return lambda: Written(forward, constant)


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "activation": (stacked, lambda: stacked(nn.Sigmoid())),
    "parameter of an activation": (lambda: stacked(nn.LeakyReLU(0.1)), lambda: stacked(nn.LeakyReLU(0.2))),
    "kind of GELU": (lambda: stacked(nn.GELU()), lambda: stacked(nn.GELU("tanh"))),
    "eps": (stacked, lambda: stacked(eps=1e-2)),
    "stride": (stacked, lambda: stacked(stride=2)),
    "padding": (stacked, lambda: stacked(padding=2)),
    "padding mode": (stacked, lambda: stacked(padding_mode="reflect")),
    "dilation": (stacked, lambda: stacked(dilation=2)),
    "order": (written(lambda n, x: n.b(n.a(x).relu())), written(lambda n, x: n.a(n.b(x).relu()))),
    "skip": (written(lambda n, x: n.b(n.a(x).relu())), written(lambda n, x: n.b(n.a(x).relu()) + x)),
    "number": (written(lambda n, x: n.b(n.a(x) * 2)), written(lambda n, x: n.b(n.a(x) * 3))),
    "operands": (written(lambda n, x: n.a(x) - n.b(x)), written(lambda n, x: n.b(x) - n.a(x))),
    "part": (written(lambda n, x: n.b(n.a(x))[:, :2]), written(lambda n, x: n.b(n.a(x))[:, 2:])),
    "constant": (written(lambda n, x: n.b(n.a(x)) * n.constant), written(lambda n, x: n.b(n.a(x)) * n.constant, 3.0)),
    "hidden buffer": (written(lambda n, x: n.b(n.a(x)) * n.hidden), written(lambda n, x: n.b(n.a(x)) * n.hidden, 3.0)),
    "output": (written(lambda n, x: n.b(n.a(x)) + x), written(lambda n, x: (n.b(n.a(x)), n.b(n.a(x)) + x)[0])),
}


@pytest.mark.filterwarnings("ignore")  # not all of these become integers
@pytest.mark.parametrize(("net", "other"), PAIRS.values(), ids=PAIRS)
def test_another_network_is_refused(
    net: Callable[[], nn.Module], other: Callable[[], nn.Module], tmp_path: Path
) -> None:
    x = X if isinstance(net(), nn.Sequential) else X.reshape(-1, 4)
    assert net().state_dict().keys() == other().state_dict().keys()
    q = probq.quantize(net(), x)
    q.save(tmp_path / "q")
    with pytest.raises(probq.ProbqError, match=r"another network: .*(operation|it has).*give the network that was"):
        probq.load(tmp_path / "q", other())
    assert torch.equal(probq.load(tmp_path / "q", net())(x), q(x))


SAME: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "in place": (stacked, lambda: stacked(nn.ReLU(inplace=True))),
    "training mode": (stacked, lambda: stacked().train()),
    "idle dropout": (
        written(lambda n, x: n.b(nn.functional.dropout(n.a(x), 0.5, n.training))),
        written(lambda n, x: n.b(n.a(x))),
    ),
    "method or function": (
        written(lambda n, x: n.b(torch.relu(n.a(x)))),
        written(lambda n, x: n.b(nn.functional.relu(n.a(x)))),
    ),
}


@pytest.mark.parametrize(("net", "other"), SAME.values(), ids=SAME)
def test_what_computes_the_same_is_accepted(
    net: Callable[[], nn.Module], other: Callable[[], nn.Module], tmp_path: Path
) -> None:
    x = X if isinstance(net(), nn.Sequential) else X.reshape(-1, 4)
    q = probq.quantize(net(), x)
    q.save(tmp_path / "q")
    assert torch.equal(probq.load(tmp_path / "q", other())(x), q(x))


def test_weights_batch_and_process_do_not_matter() -> None:
    net, signature = stacked(), (((2, 6, 6), torch.float32),)
    lines = fingerprint(net, signature)
    with torch.no_grad():
        net[0].weight.mul_(3)
    assert fingerprint(net, signature) == lines
    assert probq.quantize(net, X[:1]).signature == probq.quantize(net, X).signature == signature
    code = (
        "import json, torch, test_fingerprint as t; from probq.network.quantized.fingerprint import fingerprint; "
        "print(json.dumps(fingerprint(t.stacked(), (((2, 6, 6), torch.float32),))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == lines
    assert lines[1] == "batch_norm(#1, 1.running_mean, 1.running_var, 1.weight, 1.bias, False, 1e-05)"


def test_the_network_and_the_random_state_are_left_as_they_are() -> None:
    net = stacked().train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    fingerprint(net, (((2, 6, 6), torch.float32),))
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())


def test_a_network_that_needs_other_arguments_is_told_by_its_modules() -> None:
    lines = [fingerprint(stacked(eps=eps), ()) for eps in (1e-5, 1e-2)]
    assert [a == b for a, b in zip(*lines, strict=True)] == [True, True, False, True, True, True, True]
    assert "eps=0.01" in lines[1][2]


def stored(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "numpy") as opened:
        manifest = json.loads(opened.metadata()["probq"])
    return {key: value for key, value in manifest.items() if key != "sha256"}, load_file(path)


def test_files_of_other_versions_load_with_a_warning(tmp_path: Path) -> None:
    q = probq.quantize(stacked(), X)
    q.save(tmp_path / "q")
    manifest, tensors = stored(tmp_path / "q")
    write(tmp_path / "old", {key: value for key, value in manifest.items() if key != "fingerprint"}, tensors)
    with pytest.warns(UserWarning, match="does not say what its network computes") as caught:
        assert torch.equal(probq.load(tmp_path / "old", stacked())(X), q(X))
    assert caught[0].filename == __file__
    versions = {**manifest["versions"], "torch": "1.0"}
    write(tmp_path / "torch", {**manifest, "versions": versions, "fingerprint": ["relu(input 1)"]}, tensors)
    with pytest.warns(UserWarning, match="or torch 1.0, which wrote it, calls them otherwise"):
        probq.load(tmp_path / "torch", stacked())
