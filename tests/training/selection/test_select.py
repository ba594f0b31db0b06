"""A selector between decided networks: its choices by hand, its expected cost by counting, its integers everywhere."""

import numpy as np
import pytest
import torch
from small_fits import trained_on_digits
from torch import nn

import probq
from probq import Budget, ProbqError
from probq.codebooks import ladder
from probq.export import c, onnx, verify
from probq.training.selection.multiplier import Scores, least_price

SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror")


def images():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10)
    )  # fmt: skip


def forms(net, x, *percents):
    q = probq.quantize(net, x[:64], probq.Plan(weight=ladder(2, 4, 8), input=ladder(2, 4, 8)))
    return [q.at(q.mode(Budget(percent=p))) for p in percents]


def chooser(x, count=2):
    torch.manual_seed(1)
    net = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, count))
    return probq.quantize(net, x[:64], probq.uniform(8, 8))


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    net = images()
    x, y, batches = trained_on_digits(net, 0.01, 5)
    return net, x, y, batches


@pytest.fixture(scope="module")
def chosen(digits):
    net, x, _, batches = digits
    low, high = forms(net, x, 1.5, 6)
    spent = [form.mode().cost() for form in (low, high)]
    selector = chooser(x)
    budget = Budget(limit=selector.mode().cost() + np.mean(spent))
    return probq.select([low, high], selector, batches[:6], budget, 5, progress=False, seed=0)


def test_the_expected_cost_is_what_counting_gives(digits, chosen):
    data = torch.cat([x for x, _ in digits[3][:6]])
    spent = [form.mode().cost() for form in chosen.networks]
    found = sum(spent[int(k)] for k in chosen.choices(data)) / len(data) + chosen.selector.mode().cost()
    assert found == pytest.approx(chosen.cost(), rel=1e-12)
    assert found == pytest.approx(chosen.cost(data), rel=1e-12)
    assert 0.95 * chosen.budget.limit < found <= chosen.budget.limit
    assert chosen.percent() == pytest.approx(100 * found / chosen.budget.full(chosen.networks[0].layers))
    assert chosen.shares.min() > 0


def test_each_example_has_the_output_of_its_own_network(digits, chosen):
    x = digits[1][1280:1400].double()
    choices, outputs = chosen.choices(x), chosen(x)
    for number, network in enumerate(chosen.networks):
        rows = choices == number
        assert rows.any()
        assert torch.equal(outputs[rows], network.eval()(x[rows]))
    assert chosen(x[:0]).shape == (0, 10)


def test_choices_are_those_of_the_selector_in_real_numbers(digits, chosen):
    x = digits[1][1280:].double()
    integers = chosen.selector.eval()(x).numpy() / chosen.model.output_scale
    assert np.array_equal((integers + chosen.offsets).argmin(1), chosen.choices(x))


def test_no_integer_differs_in_the_interpreter_c_and_onnx(digits, chosen, tmp_path):
    x = torch.cat([digits[1][1280:1400], torch.rand(60, 1, 8, 8) * 2 - 0.5])
    model = chosen.lower()
    assert np.array_equal(model(x) * model.output_scale, chosen(x.double()).numpy())
    assert len(np.unique(chosen.choices(x))) == 2
    model.save(tmp_path / "m.safetensors")
    again = probq.IntegerModel.load(tmp_path / "m.safetensors")
    assert np.array_equal(again(x), model(x))
    c.write(model, tmp_path / "m.h")
    assert np.array_equal(c.run(tmp_path / "m.h", model.quantize_input(x), SANITIZED), model(x))
    pytest.importorskip("onnxruntime")
    for packed in (False, True):
        onnx.write(model, tmp_path / "m.onnx", packed=packed)
        assert verify(model, tmp_path / "m.onnx", x).differing == 0


def test_an_input_is_read_at_the_widths_of_each_branch(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(256, 6)
    y = net(x).argmax(1)
    plans = [
        probq.uniform(2, 2, network_input=ladder(2)),
        probq.uniform(8, 8),
        probq.uniform(4, 4, network_input=ladder(4)),
    ]
    networks = [probq.quantize(net, x[:64], plan) for plan in plans]
    selector = probq.quantize(nn.Linear(6, 3), x[:64], probq.uniform(4, 4))
    made = probq.select(networks, selector, [(x, y)], Budget(percent=4), 2, progress=False, seed=0)
    model = made.lower()
    assert len(model.inputs) == 3
    given = torch.randn(300, 6)
    assert np.array_equal(model(given) * model.output_scale, made(given.double()).numpy())
    c.write(model, tmp_path / "m.h")
    onnx.write(model, tmp_path / "m.onnx")
    for name in ("m.h", "m.onnx"):
        assert verify(model, tmp_path / name, given).differing == 0


def test_the_price_is_the_least_that_keeps_the_limit():
    random = np.random.default_rng(0)
    integers = random.integers(-500, 501, (40, 3))
    scores = Scores(integers, 0.01, np.array([1.0, 0.3, 0.0]), 1000, np.array([10.0, 25.0, 70.0]))
    for limit in (10.0, 15.0, 30.0, 60.0, 80.0):
        price = least_price(scores, limit)
        losses = integers * scores.unit + scores.means  # in nats, with no rounding
        spent = scores.costs[(losses + price * scores.costs).argmin(1)].mean()
        assert scores.expected_cost(price) <= limit
        assert spent == pytest.approx(scores.expected_cost(price), abs=3)
        if price:
            assert scores.expected_cost(price * (1 - 1e-6) - 1e-9) > limit


def test_a_selector_that_knows_takes_the_wide_network_where_it_helps():
    """Losses by hand: the narrow network is right for positive inputs alone, and the selector sees the sign."""
    torch.manual_seed(0)
    x = torch.rand(400, 1) * 2 - 1
    y = torch.where(x > 0, x, 0.5 * x)
    rate = nn.Linear(1, 1)
    with torch.no_grad():
        rate.weight.fill_(1.0)
        rate.bias.zero_()
    narrow = probq.quantize(rate, x[:64], probq.uniform(2, 2))
    wide = probq.quantize(rate, x[:64], probq.uniform(8, 8))
    with torch.no_grad():
        wide.net.weight.fill_(0.5)
    spent = [q.mode().cost() for q in (narrow, wide)]
    selector = probq.quantize(nn.Linear(1, 2), x[:64], probq.uniform(8, 8))
    options = {"epochs": 40, "progress": False, "seed": 0, "rates": probq.Rates(weights=0.05)}
    limit = Budget(limit=selector.mode().cost() + np.mean(spent) + 4)
    made = probq.select([narrow, wide], selector, list(zip(x.split(50), y.split(50), strict=True)), limit, **options)
    sure = x.abs().squeeze(1) > 0.25
    assert np.array_equal(made.choices(x[sure]), (x[sure, 0] < 0).long().numpy())


WRONG = {
    "one network": (lambda low, high, s: ([low], s, Budget(percent=5)), "two networks or more"),
    "not decided": (lambda low, high, s: ([low, chooser_of_widths()], s, Budget(percent=5)), "no fixed widths"),
    "another network": (lambda low, high, s: ([low, s], s, Budget(percent=5)), "has other layers than the first"),
    "too little": (lambda low, high, s: ([low, high], s, Budget(percent=0.01)), "the cheapest network costs"),
    "no room for the selector": (
        lambda low, high, s: ([low, high], s, Budget(limit=low.mode().cost())), "its selector",
    ),
    "storage": (
        lambda low, high, s: ([low, high], s, Budget(percent=9, cost=probq.cost.storage)), "limit a cost of running",
    ),
    "no budget": (lambda low, high, s: ([low, high], s, None), "takes one probq.Budget"),
    "a chance": (lambda low, high, s: ([low, high], s, Budget(percent=5, probability=0.9)), "without probability"),
    "three outputs": (lambda low, high, s: ([low, high], chooser(X, 3), Budget(percent=9)), r"not \(2,\)"),
}  # fmt: skip
X = torch.rand(64, 1, 8, 8)


def chooser_of_widths():
    return probq.quantize(images(), X, probq.Plan(weight=ladder(2, 8)))


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_words(case):
    torch.manual_seed(0)
    low, high = forms(images(), X, 1.5, 6)
    given, said = WRONG[case]
    networks, selector, budget = given(low, high, chooser(X))
    batches = [(X, torch.arange(64) % 10)]
    with pytest.raises(ProbqError, match=said):
        probq.select(networks, selector, batches, budget, 1, progress=False)
