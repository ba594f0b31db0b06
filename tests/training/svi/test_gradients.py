"""Gradients that are not finite, or not those of the network that was run; modes in which torch makes none."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import probq
from probq import ProbqError

X, Y = torch.randn(48, 4), torch.arange(48) % 3
PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]


class Spoiled(torch.autograd.Function):
    """The identity, with a gradient of one's choice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.factor, None


class Net(nn.Module):
    """A network whose gradients are spoiled from a given call in training on; its outputs never are."""

    def __init__(self, after: int, factor: float, norm: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.after, self.factor, self.calls = after, factor, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x)).relu()
        self.calls += self.training and torch.is_grad_enabled()
        if self.training and self.calls > self.after:
            h = Spoiled.apply(h, self.factor)
        return self.b(h)  # type: ignore[no-any-return]


def finite(q: probq.Quantized) -> bool:
    return all(tensor.isfinite().all() for tensor in q.state_dict().values() if tensor.is_floating_point())


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("search", [1.0, 0.5], ids=["search", "tune"])
def test_a_gradient_that_is_not_finite_is_told_in_its_own_step(
    tmp_path: Path, factor: float, norm: bool, search: float
) -> None:
    """The last step of an epoch, and of the fit: nothing comes behind it that could notice."""
    path = tmp_path / "q.safetensors"
    q = probq.quantize(Net(5, factor, norm).eval(), X)
    with pytest.raises(ProbqError, match=r"a gradient at step 5 made net\.a\.\w+ infinite .* step [03]\."):
        probq.fit(q, PAIRS, epochs=2, search=search, checkpoint=path, seed=0, progress=False)
    assert finite(q)
    assert finite(probq.load(path, Net(5, factor, norm).eval()))


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    q = probq.quantize(Net(9, 1.0).eval(), X)
    q.save(tmp_path / "q")
    before = (tmp_path / "q").read_bytes()
    for name in ("net.a.weight", "quantizers.a/input.log2_scale", "quantizers.b/weight.logits"):
        spoiled = copy.deepcopy(q)
        dict(spoiled.named_parameters())[name].data.view(-1)[0] = math.inf
        with pytest.raises(ProbqError, match=f"{name} holds a number that is not finite"):
            spoiled.save(tmp_path / "q")
        assert (tmp_path / "q").read_bytes() == before


class Recomputed(nn.Module):
    """Recomputes its second layer in the backward pass, while it trains."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = checkpoint(self.b, h, use_reentrant=self.reentrant) if self.training else self.b(h)
        return self.c(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
@pytest.mark.parametrize("decided", [False, True], ids=["search", "tune"])
def test_activation_checkpointing_is_refused(reentrant: bool, decided: bool) -> None:
    q = probq.quantize(Recomputed(reentrant).eval(), X)
    q = q.at(q.mode()) if decided else q
    with pytest.raises(ProbqError, match=r"a second time in the backward pass \(torch.utils.checkpoint\)"):
        probq.fit(q, PAIRS, epochs=1, progress=False)


def test_what_torch_says_of_gradients_is_told_in_a_sentence() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(6, 3))
    with pytest.raises(RuntimeError, match="inplace"):  # the network itself
        net(X).sum().backward()
    with pytest.raises(ProbqError, match=r"gradients of a step cannot be computed: .*does not train either") as caught:
        probq.fit(probq.quantize(net, X), PAIRS, epochs=1, progress=False)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("after", [nn.Dropout(0.2, inplace=True), nn.ReLU(inplace=True)], ids=["dropout", "relu"])
@pytest.mark.parametrize("function", [nn.Hardswish(inplace=True), nn.SiLU(inplace=True), nn.GELU()], ids=repr)
def test_what_works_in_place_behind_a_table_trains(function: nn.Module, after: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 6), function, after, nn.Linear(6, 3))
    net(X).sum().backward()  # as the network itself does
    q = probq.quantize(net, X)
    history = probq.fit(q, PAIRS, epochs=2, seed=0, progress=False)
    assert len(history.steps) == 6
    model = probq.lower(q)
    assert (model(X) * model.output_scale == q(X).double().numpy()).all()


MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_fit_is_the_same_where_gradients_are_off(mode: Any) -> None:
    q = probq.quantize(Net(99, 1.0, norm=True).eval(), X)
    states = []
    for context in (torch.enable_grad, mode):
        own = copy.deepcopy(q)
        with context():
            probq.fit(own, PAIRS, epochs=2, seed=0, validation=PAIRS, evaluations=20, progress=False)
        states.append(own.state_dict())
        assert own.mode() == own.mode()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_steps_in_the_hands_of_a_user_whose_gradients_are_off(mode: Any) -> None:
    losses = []
    for context in (torch.enable_grad, mode):
        with context():
            q = probq.quantize(Net(99, 1.0).eval(), X)
            q.load_state_dict(losses[0][0] if losses else q.state_dict())
            first = {name: tensor.clone() for name, tensor in q.state_dict().items()}
            losses.append((first, [step.loss for step in probq.steps(q, PAIRS, epochs=2, seed=0)]))
    assert losses[0][1] == losses[1][1]


OPTIMIZERS: dict[str, tuple[Any, str]] = {
    "LBFGS": (torch.optim.LBFGS, "fails with it: LBFGS doesn't support per-parameter"),
    "made before": (torch.optim.Adam([nn.Parameter(torch.zeros(1))]), "give the class instead .*Adam"),
    "a name": ("adam", "not 'adam'"),
    "without a rate": (lambda groups, momentum: None, "fails with it: .*momentum"),
    "no optimizer": (lambda groups: groups, "makes a list"),
}


@pytest.mark.parametrize(("optimizer", "message"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_makes_no_optimizer_is_refused_before_the_first_step(optimizer: Any, message: str) -> None:
    q = probq.quantize(Net(99, 1.0).eval(), X)
    with pytest.raises(ProbqError, match=f"optimizer makes an optimizer of parameter groups.*{message}"):
        probq.steps(q, PAIRS, optimizer=optimizer)
    assert not q.calibrated
