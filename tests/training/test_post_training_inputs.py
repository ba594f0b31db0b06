"""Networks with several inputs, some of which are not of examples, are quantized like those with one."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Budget, Energy, ProbqError, criteria

pytestmark = pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*energies of loss are negative")


class TwoInputs(nn.Module):
    """Both inputs are of examples; a gain for all of them may follow."""

    gain: Tensor

    def __init__(self, gain: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3)
        self.register_buffer("gain", torch.ones(6) if gain is None else gain)

    def forward(self, x: Tensor, z: Tensor, gain: Tensor | None = None) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b(z)) * (self.gain if gain is None else gain))


torch.manual_seed(3)
X, Z = torch.rand(48, 4), torch.rand(48, 3)
GAIN = 0.5 + torch.rand(6).mul(16).round() / 16  # few binary digits: as a constant it is not rounded
Y = TwoInputs()(X, Z).argmax(-1)


def loss(net: Any) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(net(X, Z), Y))


def divergence(net: Any) -> float:
    with torch.no_grad():
        there, here = F.log_softmax(TwoInputs()(X, Z), -1), F.log_softmax(net(X, Z), -1)
        return float(F.kl_div(here, there, log_target=True, reduction="sum"))


@pytest.mark.parametrize(("batch", "measure"), [(((X, Z), Y), loss), (((X, Z), None), divergence)])
def test_of_two_inputs_the_best_rounding_is_kept(batch: Any, measure: Any) -> None:
    """The measure by torch alone is not above that of nearest rounding, within the budget."""
    options: dict[str, Any] = {"budget": Budget(percent=3), "progress": False}
    q = probq.post_training(TwoInputs(), [batch], **options)
    nearest = probq.post_training(TwoInputs(), [batch], rounding=[], **options)
    assert q.mode().percent() <= 3
    assert measure(q) <= measure(nearest) + 1e-6
    if batch[1] is None:
        alone = probq.post_training(TwoInputs(), [((X, Z),)], rounding=[], **options)
        assert alone.mode() == nearest.mode()


@pytest.mark.parametrize("criterion", [criteria.loss, criteria.kl, partial(criteria.mpqco, seed=0), criteria.hawq])
def test_what_has_no_axis_of_examples_stays_whole(criterion: Any) -> None:
    """The same network with the gain inside has the same energy, of the first examples of a longer batch."""
    if criterion is criteria.hawq:
        criterion = partial(criterion, seed=0)
    outside = criterion(probq.quantize(TwoInputs(), (X, Z, GAIN)), [((X, Z, GAIN), Y)], examples=20, progress=False)
    inside = criterion(probq.quantize(TwoInputs(GAIN), (X, Z)), [((X, Z), Y)], examples=20, progress=False)
    for a, b in zip(outside.unary, inside.unary, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_an_example_keeps_a_number_by_itself() -> None:
    q = probq.quantize(TwoInputs(), (X, Z, torch.tensor(2.0)))
    assert [tuple(a.shape) for a in q.example] == [(16, 4), (16, 3), ()]


def test_inputs_that_are_no_tuple_are_told() -> None:
    with pytest.raises(
        ProbqError,
        match=r"several inputs are one tuple, or a dictionary by keyword, also in batches: \(\(a, b\), target\)",
    ):
        probq.post_training(TwoInputs(), [(X, Z)], Budget(percent=3), progress=False)


def test_a_criterion_of_ones_own_gets_the_options_that_it_takes() -> None:
    """The one without options chooses as `kl` itself does; what gives no energy is refused."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    options: dict[str, Any] = {"budget": Budget(percent=3), "rounding": [], "progress": False}

    def plain(q: Any, batches: Any) -> Energy:
        return criteria.kl(q, batches, progress=False)

    several = (plain, partial(criteria.kl, examples=48), None)
    given = [probq.post_training(net, [X], criterion=c, **options) for c in several]
    assert given[0].mode() == given[1].mode() == given[2].mode()
    few = probq.post_training(net, [X], criterion=partial(criteria.kl, examples=4), **options)
    assert few.energy is not None
    assert few.energy.unary[0][0] != given[2].energy.unary[0][0]
    with pytest.raises(ProbqError, match=r"the criterion of post_training gives a probq\.Energy, not 3"):
        probq.post_training(net, [X], criterion=lambda q, batches: 3, **options)
