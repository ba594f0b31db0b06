"""Divergences at a temperature by algebra, losses of steps by hand, teachers that move as their formulas say."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small_checkpoints import X, Y, call, network
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Laplace, Normal, OneHotCategorical, Poisson

import probq
from probq import ProbqError, Quantized, distillation
from probq.likelihoods import Categorical, Classes, categorical
from probq.training.distillation.lessons import Lesson, divergence
from probq.training.distillation.tempered import tempered_divergence

A = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
B = torch.tensor([[0.5, 0.5, -2.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
ZEROS = torch.zeros(2, dtype=torch.int64)
TEACHERS = {
    "offline": lambda net: distillation.offline(net, 0.3, 2.0),
    "online": lambda net: distillation.online(net, 1e-2, 0.3, 2.0),
    "itself": lambda net: distillation.itself(0.9, 0.3, 2.0),
}


def decided() -> Quantized:
    """A network that computes the same in every step as at its mode."""
    torch.manual_seed(0)
    q = probq.quantize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), X)
    return q.at(q.mode())


def float_network(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


# Divergences


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_gradient_is_the_temperature_times_the_difference_of_probabilities(temperature: float) -> None:
    logits = B.clone().requires_grad_()
    found = divergence(categorical(A), categorical(logits), ZEROS, temperature)
    by_torch = F.kl_div((B / temperature).log_softmax(1), (A / temperature).softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(found, temperature**2 * by_torch)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(slope, temperature * ((B / temperature).softmax(1) - (A / temperature).softmax(1)))


def test_at_high_temperatures_it_is_half_the_square_of_centred_logits_over_their_number() -> None:
    found = divergence(categorical(A), categorical(B), ZEROS, 1e4)
    centred = (A - A.mean(1, True)) - (B - B.mean(1, True))
    torch.testing.assert_close(found, centred.square().sum(1) / (2 * 3), rtol=1e-3, atol=0)


def test_normal_laws_become_wider_by_the_root_of_the_temperature() -> None:
    p, q = Normal(A, 0.5), Normal(B, 0.5)
    torch.testing.assert_close(tempered_divergence(p, q, 3.0), (A - B) ** 2 / (2 * 3 * 0.25))
    density = stats.norm.pdf(1.0, 0.2, 0.7) ** (1 / 3) / stats.norm.pdf(0.2, 0.2, 0.7) ** (1 / 3)
    assert density == pytest.approx(math.exp(-(0.8**2) / (2 * 0.7**2 * 3)))
    uneven = tempered_divergence(Normal(A, 0.5), Normal(B, 0.25), 3.0)
    torch.testing.assert_close(uneven, math.log(0.5) + (0.75 + (A - B) ** 2) / (2 * 0.1875) - 0.5)


def test_yes_or_no_is_two_classes_whose_second_logit_is_zero() -> None:
    laws = [Independent(Bernoulli(logits=logits), 1) for logits in (A, B)]
    two = [Categorical()(torch.stack([logits.flatten(), torch.zeros(6)], 1)) for logits in (A, B)]
    torch.testing.assert_close(tempered_divergence(*laws, 2.0).flatten(), tempered_divergence(*two, 2.0))
    onehot, plain = ([kind(logits=logits) for logits in (A, B)] for kind in (OneHotCategorical, Classes))
    torch.testing.assert_close(tempered_divergence(*onehot, 2.0), tempered_divergence(*plain, 2.0))


def test_other_laws_are_compared_at_temperature_one_if_torch_can() -> None:
    rates = (A.exp(), B.exp())
    expected = rates[0] * (A - B) - rates[0] + rates[1]
    torch.testing.assert_close(tempered_divergence(Poisson(rates[0]), Poisson(rates[1]), 1.0), expected)
    with pytest.raises(ProbqError, match="temperature=1"):
        tempered_divergence(Poisson(rates[0]), Poisson(rates[1]), 2.0)
    with pytest.raises(ProbqError, match="no divergence of a Poisson from a Laplace law"):
        tempered_divergence(Poisson(rates[0]), Laplace(B, 1.0), 1.0)


def test_ignored_targets_have_no_teacher() -> None:
    y = torch.tensor([[0, -100], [1, 2]])
    a, b = (torch.stack([one, one.flip(0)], 1) for one in (A, B))
    found = divergence(categorical(a), categorical(b), y, 1.0)
    each = tempered_divergence(categorical(a), categorical(b), 1.0)
    torch.testing.assert_close(found, torch.stack([each[0, 0], each[1].sum()]))


def test_at_temperature_one_it_is_the_bound_of_data_from_the_teacher_but_for_its_entropy() -> None:
    lesson, law, y, w = Lesson(categorical(A), 0.3, 1.0), categorical(B), torch.tensor([1, 2]), 0.3
    p = A.softmax(1)
    drawn = -(p * torch.stack([law.log_prob(torch.full((2,), k)) for k in range(3)], 1)).sum(1)  # nll of drawn targets
    entropy = -(p * p.log()).sum(1)
    expected = (1 - w) * -law.log_prob(y) + w * (drawn - entropy)
    torch.testing.assert_close(lesson.mixed(-law.log_prob(y), lesson.divergence(law, y)), expected)


# Steps


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_step_is_the_mixture_of_targets_and_teacher(kind: str) -> None:
    q, net = decided(), float_network().eval()
    said = q(X).detach()
    taught = (q.net if kind == "itself" else net)(X).detach()
    step = next(probq.steps(q, [(X, Y)], epochs=2, seed=0, teacher=TEACHERS[kind](net)))
    nll = F.cross_entropy(said, Y)
    if kind != "online":  # whose dropout is at work
        expected = 4 * F.kl_div((said / 2).log_softmax(1), (taught / 2).softmax(1), reduction="batchmean")
        assert step.distillation == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert step.nll == pytest.approx(float(nll), rel=1e-4)
    assert step.loss == pytest.approx(0.7 * step.nll + 0.3 * step.distillation, rel=1e-5)
    assert step.kl == pytest.approx(0, abs=1e-6)


def test_the_divergences_of_widths_and_codes_keep_their_weight() -> None:
    kls = []
    for teacher in (None, float_network()):
        q = network()
        kls.append(next(probq.steps(q, [(X, Y)], epochs=2, rounding=False, seed=0, teacher=teacher)).kl)
    assert kls[0] == pytest.approx(kls[1], rel=1e-4)
    assert kls[0] > 0


def test_several_draws_learn_from_the_same_mixture() -> None:
    q = decided()
    q.rounding = True  # codes are not drawn, and have no divergence
    lesson = Lesson(categorical(float_network().eval()(X).detach()), 0.3, 2.0)
    law = categorical(q(X).detach())
    with torch.no_grad():
        found = probq.leave_one_out(q, X, Y, size=1, draws=2, lesson=lesson)
    expected = lesson.mixed(-law.log_prob(Y).mean(), lesson.divergence(law, Y).mean())
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=0)


def test_a_network_is_an_offline_teacher_and_is_left_as_it_was() -> None:
    net, fits = float_network(), []
    before = copy.deepcopy(net.state_dict())
    for teacher in (net, distillation.offline(net)):
        q = network()
        call(q, None, epochs=3, teacher=teacher)
        fits.append(q.state_dict())
    assert all(torch.equal(fits[0][name], fits[1][name]) for name in fits[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_teacher_teaches_what_targets_do_not_tell() -> None:
    noise = torch.randint(3, Y.shape, generator=torch.Generator().manual_seed(0))
    knows: Any = lambda x: 6 * F.one_hot((x.sum(1) > 2).long() + (x[:, 0] > 0.5), 3).float()  # noqa: E731
    teacher = distillation.offline(knows, weight=1.0)
    options: Any = {"epochs": 100, "progress": False, "seed": 0, "rates": probq.Rates(weights=1e-2)}
    right = []
    for taught_by in (None, teacher):
        q = decided()
        probq.fit(q, [(X, noise)], teacher=taught_by, **options)
        right.append(float((q(X).argmax(1) == Y).double().mean()))
    assert right[0] < 0.5
    assert right[1] > 0.7


# Teachers that move


def test_an_online_teacher_learns_the_mirror_image() -> None:
    q, net, y = decided(), float_network().eval(), Y[:16]
    net[1].p = 0.0
    lessons = distillation.online(net, 1e-2, 0.3, 2.0).begin(q)
    twin = copy.deepcopy(net)
    said = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    for half in (slice(0, 8), slice(8, 16)):  # two batches of one step
        lessons.lesson(X[half])
        lessons.study(categorical(said[half]), y[half], 0.5)
    lessons.move()
    own = twin(X[:16])
    student = F.kl_div((own / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean") * 4
    (0.7 * F.cross_entropy(own, y) + 0.3 * student).backward()
    torch.optim.Adam(twin.parameters(), 1e-2).step()
    learned: Any = lessons
    for a, b in zip(learned.net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), float_network().parameters(), strict=True))


def test_a_network_teaches_itself_by_its_average() -> None:
    q = decided()
    lessons: Any = distillation.itself(0.9).begin(q)
    start = [p.detach().clone() for p in q.net.parameters()]
    for value in (1.0, 2.0):
        with torch.no_grad():
            for parameter in q.net.parameters():
                parameter.fill_(value)
        lessons.move()
    for average, first in zip(lessons.net.parameters(), start, strict=True):
        torch.testing.assert_close(average, 0.81 * first + 0.09 * 1.0 + 0.1 * 2.0)


def test_in_trials_a_teacher_stays_as_it_is() -> None:
    lessons: Any = distillation.online(float_network()).begin(decided())
    before = copy.deepcopy(lessons.net.state_dict())
    first, again = (lessons.lesson(X, learning=False).law.logits for _ in range(2))
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in lessons.net.state_dict().items())


# What cannot be


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: distillation.offline(nn.Linear(4, 3), weight=0), "above 0 and at most 1"),
        (lambda: distillation.offline(nn.Linear(4, 3), temperature=0), "a number above 0"),
        (lambda: distillation.offline("resnet"), "a network or a function"),  # type: ignore[arg-type]
        (lambda: distillation.online(nn.ReLU()), "parameters that can learn"),
        (lambda: distillation.online(nn.Linear(4, 3), rate=0), "above 0, not 0"),
        (lambda: distillation.itself(1), "0 to below 1"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        make()


@pytest.mark.parametrize(
    ("teacher", "part"),
    [("resnet", r"one of probq.distillation"), (nn.Linear(4, 5), r"law of shape \(48, 5\).* one of \(48, 3\)")],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Any, part: str) -> None:
    q, before = network(), network().state_dict()
    with pytest.raises(ProbqError, match=part):
        probq.fit(q, [(X[:48], Y[:48])], epochs=1, teacher=teacher, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in q.net.state_dict().items() if name in before)


def test_a_tensor_of_outputs_in_a_mapping_is_a_teacher_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    for teacher in (distillation.offline(Named()), distillation.online(Named())):
        assert next(probq.steps(decided(), [(X, Y)], epochs=1, seed=0, teacher=teacher)).distillation > 0
