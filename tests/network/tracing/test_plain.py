"""Networks as they come: with computed weights, in wrappers, or of a kind that is refused with what to give instead."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import probq
from probq import ProbqError

Network = Any


def _net() -> Network:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def _first(function: Callable[..., Any], *args: Any) -> Network:
    net = _net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older utilities say that they are
        function(net[0], *args)
    net(torch.randn(64, 4))  # spectral norms estimate theirs when they are called
    return net


class Doubled(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _compiled_inside() -> Network:
    net = _net()
    net[0] = torch.compile(net[0], backend="eager")
    return net


def _compiled_in_place() -> Network:
    net = _net()
    net.compile(backend="eager")
    return net


def _inference() -> Network:
    with torch.inference_mode():
        return _net()


TAKEN: dict[str, Callable[[], Network]] = {
    "weight norm, old": lambda: _first(weight_norm),
    "weight norm": lambda: _first(parametrizations.weight_norm),
    "spectral norm, old": lambda: _first(spectral_norm),
    "spectral norm": lambda: _first(parametrizations.spectral_norm),
    "orthogonal": lambda: _first(parametrizations.orthogonal),
    "a user's own": lambda: _first(parametrize.register_parametrization, "weight", Doubled()),
    "pruned": lambda: _first(prune.l1_unstructured, "weight", 0.5),
    "pruned twice": lambda: _first(
        lambda m: prune.random_unstructured(prune.l1_unstructured(m, "weight", 0.5), "weight", 0.2)
    ),
    "pruned bias": lambda: _first(prune.l1_unstructured, "bias", 0.5),
    "DataParallel": lambda: nn.DataParallel(_net()),
    "DataParallel inside": lambda: nn.Sequential(nn.DataParallel(_net()), nn.ReLU()),
    "compiled": lambda: torch.compile(_net(), backend="eager"),
    "compiled inside": _compiled_inside,
    "compiled in place": _compiled_in_place,
    "made in inference mode": _inference,
    "fx": lambda: torch.fx.symbolic_trace(_net()),
}


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN.keys())
def test_networks_are_taken_from_fit_to_integers_and_files(make: Callable[[], Network], tmp_path: Path) -> None:
    net = make().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.no_grad():
        expected = net(x)
    q = probq.quantize(net, x)
    with torch.no_grad():
        assert torch.allclose(q.net(x), expected, atol=1e-6)
    probq.fit(q, [(x.detach(), torch.randint(3, (64,)))], epochs=2, seed=0, progress=False)
    model = probq.lower(q)
    with torch.no_grad():
        assert torch.equal(torch.tensor(model(x.detach().numpy()) * model.output_scale).float(), q(x).float())
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(probq.load(tmp_path / "q.safetensors", net)(x), q(x))
    assert [type(module) for module in net.modules()] == kinds
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(x), expected)


def test_what_was_computed_is_noted_and_a_mask_is_kept_as_zeros() -> None:
    net = TAKEN["pruned"]()
    x = torch.randn(64, 4)
    q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(4), keep_zeros=True))
    assert any(note.startswith("0.weight was computed from other tensors") for note in q.notes)
    probq.fit(q, [(x, torch.randint(3, (64,)))], epochs=3, seed=0, progress=False)
    level_0 = 7  # of -7 to 7
    assert (q.mode().codes["0.weight"][(net[0].weight_mask == 0).numpy()] == level_0).all()


def test_a_frozen_normalised_weight_stays_frozen() -> None:
    net = TAKEN["weight norm"]()
    net[0].requires_grad_(False)
    q = probq.quantize(net, torch.randn(8, 4))
    assert {n for n, p in q.net.named_parameters() if not p.requires_grad} == {"0.weight", "0.bias"}


class Auxiliary(nn.Module):
    """A second head in training, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.second = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        return (self.head(h), self.second(h)) if self.training else self.head(h)


def _law(output: Any) -> torch.distributions.Distribution:
    return torch.distributions.Categorical(logits=sum(output) if isinstance(output, tuple) else output)


def test_heads_that_only_training_reaches_stay_float_and_are_trained() -> None:
    torch.manual_seed(0)
    net, x = Auxiliary(), torch.randn(64, 4)
    with pytest.warns(UserWarning, match="second is reached in training alone"):
        q = probq.quantize(net, x, likelihood=_law)
    probq.fit(q, [(x, torch.randint(3, (64,)))], epochs=2, seed=0, progress=False)
    assert not torch.equal(q.net.second.weight, net.second.weight)
    assert [layer.name for layer in q.layers] == ["body", "head"]
    assert probq.lower(q)(x.numpy()).shape == (64, 3)


class Never(Auxiliary):
    """A layer that nothing reaches."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


def _scripted() -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.script(_net())


REFUSED: dict[str, tuple[Callable[[], Network], str]] = {
    "scripted": (_scripted, "hides its layers; give the network it was made from"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), r"call net\(example\) once"),
    "meta": (lambda: _net().to("meta"), "load the network's weights first"),
    "quantized": (lambda: probq.quantize(_net(), torch.randn(2, 4)), "quantized by probq already"),
    "never reached": (Never, "the example never reaches layer second"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_networks_that_cannot_be_taken_are_refused_with_what_to_give(make: Callable[[], Network], message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        probq.quantize(make(), torch.randn(2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_are_float32_in_the_copy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = _net().to(dtype), torch.randn(8, 4).to(dtype)
    q = probq.quantize(net, x)
    assert any(f"{dtype} are float32 in the copy" in note for note in q.notes)
    assert {p.dtype for p in q.parameters()} == {torch.float32}
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert torch.equal(q(x.float()), probq.quantize(net.float(), x.float())(x.float()))


def test_what_is_no_network_is_told() -> None:
    with pytest.raises(ProbqError, match=r"a network is a torch\.nn\.Module, not str"):
        probq.layers("net", torch.rand(2, 3))  # type: ignore[arg-type]
