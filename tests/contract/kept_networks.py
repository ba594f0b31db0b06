"""The networks whose posteriors lie in `files/`, and how each was fitted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Budget, Layer, Plan, cost, estimators, priors
from probq.codebooks import binary, ladder, learned, levels, powers_of_two, ternary
from probq.likelihoods import Categorical, Normal


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


def functions() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 2))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


def text() -> nn.Module:
    return nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 1))


class Shared(nn.Module):
    """Two layers with one weight, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return self.out(hidden + F.relu(self.second(hidden)))


class Residual(nn.Module):
    """Convolutions whose channels can be pruned, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.c, self.out = nn.Conv2d(3, 3, 1, groups=3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.a(x))), 2)
        return self.out(F.relu(self.c(x + self.b(x))).mean((2, 3)))


def sixteenths(*shape: int) -> Tensor:
    return torch.randint(-16, 33, shape) / 16


IMAGES = (lambda: sixteenths(12, 1, 6, 6), lambda: torch.randint(0, 2, (12,)))
ROWS = (lambda: sixteenths(12, 4), lambda: torch.randint(0, 2, (12,)))
NUMBERS = (lambda: sixteenths(12, 4), lambda: sixteenths(12, 2))
WORDS = (lambda: torch.randint(0, 6, (12, 4)), lambda: torch.randint(0, 2, (12,)))
SEGMENTS = (lambda: sixteenths(12, 1, 4, 4), lambda: torch.randint(0, 3, (12, 4, 4)))
shift = partial(Plan, profile="shift")  # the default profile when these files were written
LATENCY = tuple((name, w, a, w * a / 8 + k) for k, name in enumerate("024") for w in (1, 2, 4, 8) for a in (1, 2, 4, 8))


@dataclass(frozen=True)
class Kept:
    """A network, its data, and what `quantize` and `fit` were given; `then` makes the posterior that is kept."""

    net: Callable[[], nn.Module]
    data: tuple[Callable[[], Tensor], Callable[[], Tensor]]
    plan: Any = field(default_factory=shift)
    budget: Any = None
    likelihood: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    then: Callable[[Any], Any] = lambda q: q
    fitted: bool = True
    validated: bool = False


def laws(layer: Layer) -> Plan:
    """Another estimator and other priors on every layer."""
    return {
        "0": shift(
            estimator=estimators.Gumbel(0.3), code_prior=priors.SpikeSlab(0.4), width_prior=priors.Geometric(0.7)
        ),
        "2": shift(
            estimator=estimators.LocalReparametrization(),
            code_prior=priors.Laplace(0.5),
            input_prior=priors.Energy((0.0, 0.5, 1.0, 2.0), 0.3),
        ),
        "4": shift(estimator=estimators.Flipout(), code_prior=priors.Normal(0.8, centred=True)),
    }[layer.name]


def others(layer: Layer) -> Plan:
    """The other estimators."""
    found = {"0": estimators.MeanGradient(), "2": estimators.ModeForward(), "4": estimators.StraightThrough()}
    return shift(weight=ladder(2, 4), estimator=found[layer.name])


def latency() -> Any:
    """A cost table of measurements by rule."""
    import pandas

    return cost.table(pandas.DataFrame(LATENCY, columns=["layer", "weight_bits", "input_bits", "cost"]), "latency")


SEVERAL = (
    Budget(percent=3.0, probability=0.9),
    Budget(limit=400, cost=cost.storage),
    Budget(percent=60, cost=cost.largest_activation),
)
KEPT = {
    "default": Kept(convolutional, IMAGES, budget=Budget(percent=2.0)),
    "not_fitted": Kept(convolutional, IMAGES, fitted=False),
    "channel_gates": Kept(
        Residual, IMAGES, shift(ladder(0, 2, 4), gates="channel"), Budget(percent=1.0, cost=cost.pruned_bops)
    ),
    "weight_gates": Kept(perceptron, ROWS, shift(ladder(0, 1, 2, 4), gates="weight", codes=3), Budget(percent=1.5)),
    "dyadic": Kept(convolutional, IMAGES, Plan(ladder(1, 2, 4)), Budget(percent=2.0)),
    "activation_tables": Kept(functions, ROWS, shift(activation=4), Budget(percent=3.0, cost=cost.ebops)),
    "tied_widths": Kept(perceptron, ROWS, shift(ladder(1, 2, 4), tie_weight="body", tie_input="in"), Budget(percent=2)),
    "tied_weights_normal": Kept(Shared, NUMBERS, budget=Budget(percent=3.0)),
    "normal_of_known_sd": Kept(perceptron, NUMBERS, likelihood=Normal(0.3)),
    "pruned": Kept(
        perceptron, ROWS, shift(ladder(0, ternary(), 4), keep_zeros=True), Budget(percent=40, cost=cost.activations)
    ),
    "learned_levels": Kept(
        convolutional, IMAGES, shift(ladder(0, learned([-1.5, 0, 1]), 4), scales="tensor"), Budget(percent=2.0)
    ),
    "given_levels": Kept(
        perceptron, ROWS, shift(ladder(levels([-1.5, -0.25, 0.25, 1.5]), powers_of_two(3)), codes=1), Budget(percent=5)
    ),
    "free_codes": Kept(perceptron, ROWS, shift(ladder(0, binary(), 3), free_codes=True), Budget(percent=2.0)),
    "priors_and_estimators": Kept(perceptron, ROWS, laws, Budget(percent=3.0), options={"temperature": 1.0}),
    "other_estimators": Kept(perceptron, ROWS, others, Budget(percent=3.0)),
    "cost_table": Kept(perceptron, ROWS, budget=lambda: Budget(limit=9.0, cost=latency())),
    "several_budgets": Kept(perceptron, ROWS, budget=SEVERAL),
    "decided": Kept(convolutional, IMAGES, budget=Budget(percent=2.0), then=lambda q: q.at(q.mode())),
    "measured": Kept(perceptron, ROWS, budget=Budget(percent=1.0), validated=True),
    "segmentation": Kept(
        pixels, SEGMENTS, budget=Budget(percent=4.0), likelihood=Categorical(1, [1.0, 2.0, 0.5], ignore_index=2)
    ),
    "text": Kept(text, WORDS, shift(ladder(2, 4)), Budget(percent=30, cost=cost.storage)),
}


def made(kept: Kept) -> tuple[Any, Tensor]:
    """The posterior, and inputs to try it on."""
    torch.manual_seed(5)
    net = kept.net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.weight, 0.8, 0.3)
    if getattr(kept.plan, "keep_zeros", False):
        net[2].weight.data[:, ::2] = 0
    x, y = kept.data[0](), kept.data[1]()
    q = probq.quantize(net.eval(), x, kept.plan, kept.likelihood)
    if kept.fitted:
        budget = kept.budget() if callable(kept.budget) else kept.budget
        held = {"validation": [(x, y)]} if kept.validated else {}
        probq.fit(q, [(x, y)] * 5, budget, epochs=3, progress=False, seed=0, **held, **kept.options)
    return kept.then(q), x[:3]
