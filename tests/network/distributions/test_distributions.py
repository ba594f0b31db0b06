"""The two discrete laws against scipy, enumeration, chi-square tests of their draws and gradients by other means."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from probq import ProbqError
from probq.codebooks import Grid, binary, powers_of_two, pruned, ternary, uniform
from probq.codebooks.rounding.nearest import BroadcastGrid, Levels, first_code, nearest_level
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.distributions.widths import Widths

LOGITS = torch.tensor([[0.3, -1.2, 2.0], [40.0, -40.0, 0.0], [-3.0, 0.1, 0.7]], dtype=torch.float64)


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    """P-value of counts given probabilities, cells below five expected counts joined."""
    expected = probs * counts.sum()
    small = expected < 5
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 1e-3
    assert counts[~keep].sum() == 0
    if keep.sum() == 1:
        return 1.0  # a certain outcome, and it was the outcome every time
    return float(stats.chisquare(counts[keep], expected[keep] * counts.sum() / expected[keep].sum()).pvalue)


# Widths


def enumerated(logits: Tensor) -> np.ndarray:
    """Rung probabilities by summing over all states of all gates, of which only the leading open ones count."""
    p = 1 / (1 + np.exp(-logits.numpy()))
    result = np.zeros(len(p) + 1)
    for gates in itertools.product((0, 1), repeat=len(p)):
        rung = next((k for k, gate in enumerate(gates) if not gate), len(p))
        result[rung] += np.prod(np.where(gates, p, 1 - p))
    return result


def test_width_probabilities_by_hand() -> None:
    logits = torch.tensor([math.log(3.0), math.log(0.25)], dtype=torch.float64)  # gates 3/4 and 1/5
    assert torch.allclose(Widths(logits).probs, torch.tensor([0.25, 0.6, 0.15], dtype=torch.float64))
    assert Widths(logits).mode.tolist() == [0, 1, 0]


def test_width_probabilities_are_the_enumerated_ones() -> None:
    law = Widths(LOGITS)
    for row, logits in enumerate(LOGITS):
        np.testing.assert_allclose(law.probs[row].numpy(), enumerated(logits), rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(law.probs.sum(-1).numpy(), 1, rtol=1e-12)
    assert torch.equal(law.mean, law.probs)


def test_width_log_probabilities_survive_where_probabilities_vanish() -> None:
    log_probs = Widths(torch.tensor([-800.0, 0.0])).log_probs
    np.testing.assert_allclose(log_probs.numpy(), [0, -800 + math.log(0.5), -800 + math.log(0.5)], rtol=1e-6)


def test_width_entropy_and_log_prob_by_enumeration() -> None:
    law = Widths(LOGITS[[0, 2]])
    for row, logits in enumerate(LOGITS[[0, 2]]):
        p = enumerated(logits)
        assert float(law.entropy()[row]) == pytest.approx(stats.entropy(p), rel=1e-12)
        assert torch.allclose(law.log_prob(torch.eye(4, dtype=torch.float64)[:, None])[:, row].exp(), torch.tensor(p))


def test_width_divergence_is_the_sum_over_reached_gates() -> None:
    p, q = LOGITS[[0, 2]], torch.tensor([[0.0, 0.5, -1.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
    actual = kl_divergence(Widths(p), Widths(q))
    of_gates = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q))
    reach = torch.cat([torch.ones(2, 1), torch.sigmoid(p).cumprod(-1)[:, :-1]], -1)
    assert torch.allclose(actual, (reach * of_gates).sum(-1), rtol=1e-12)
    for row in range(2):
        a, b = enumerated(p[row]), enumerated(q[row])
        assert float(actual[row]) == pytest.approx(float((a * np.log(a / b)).sum()), rel=1e-12)


def test_width_draws_are_hard_and_fit_the_law() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0], [1.0, 1.0, 1.0]])
    draws = Widths(logits).sample((20_000,))
    assert draws.shape == (20_000, 2, 4)
    assert ((draws == 0) | (draws == 1)).all()
    assert (draws.sum(-1) == 1).all()
    for gate in range(2):
        assert chi_square(draws[:, gate].sum(0).numpy(), enumerated(logits[gate].double())) > 0.001


def test_width_draws_with_gradients_are_hard_to_the_last_bit() -> None:
    logits = torch.randn(500, 4, requires_grad=True)
    draws = Widths(logits).rsample()
    assert torch.allclose(draws.detach(), draws.detach().round(), atol=1e-6)
    assert (draws.detach().sum(-1) - 1).abs().max() < 1e-6


def test_width_gradient_is_that_of_relaxed_gates() -> None:
    """By hand: rung k is `prod_{j<=k} z_j (1 - z_{k+1})`, hard gates, each differentiated as its relaxation."""
    logits = torch.tensor([0.4, -0.3, 1.1], dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for seed in range(8):
        torch.manual_seed(seed)
        (actual,) = torch.autograd.grad((Widths(logits, temperature=0.7).rsample() * direction).sum(), logits)
        torch.manual_seed(seed)
        noise = torch.rand(3, dtype=torch.float64)
        relaxed = torch.sigmoid((logits.detach() + torch.log(noise) - torch.log1p(-noise)) / 0.7)
        z = (relaxed > 0.5).double().tolist()
        a, b, c, d = direction.tolist()
        of_gates = [
            -a + (1 - z[1]) * b + z[1] * (1 - z[2]) * c + z[1] * z[2] * d,
            z[0] * (-b + (1 - z[2]) * c + z[2] * d),
            z[0] * z[1] * (d - c),
        ]
        expected = [g * float(r * (1 - r)) / 0.7 for g, r in zip(of_gates, relaxed, strict=True)]
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_width_law_expands() -> None:
    law = Widths(torch.tensor([0.0, 1.0])).expand((3, 2))
    assert law.batch_shape == (3, 2)
    assert law.event_shape == (3,)
    assert law.sample().shape == (3, 2, 3)


# Codes

UNEVEN = torch.tensor([-4.0, -1.5, 0.0, 0.25, 3.0])
LOCATION = torch.tensor([[-9.0, -0.7, 0.1], [0.49, 1.3, 8.0]])
BOOKS: dict[str, Levels] = {
    "ternary": ternary(),
    "uniform 4": uniform(4),
    "unsigned 3": uniform(3, signed=False),
    "coarse": Grid(-5, 4, 4),
    "powers": powers_of_two(3).levels(),
    "uneven": UNEVEN,
}
CASES = [(name, m) for name in BOOKS for m in (1, 2, 3, 99)]


def values_of(levels: Levels) -> np.ndarray:
    return (levels if isinstance(levels, Tensor) else levels.levels()).double().numpy()


def window_of(levels: np.ndarray, u: float, m: int) -> np.ndarray:
    """The `m` neighbouring levels around `u`: half of them below (even `m`), or the nearest central (odd)."""
    m = min(m, len(levels))
    if m % 2:
        centre = max(k for k in range(len(levels)) if abs(levels[k] - u) == np.abs(levels - u).min())
        first = centre - m // 2
    else:
        first = int((levels <= u).sum()) - m // 2
    first = min(max(first, 0), len(levels) - m)
    return np.arange(first, first + m)


def law_of(levels: np.ndarray, u: float, spread: float, m: int) -> np.ndarray:
    """Probability of every level, by scipy's logistic law."""
    result, near = np.zeros(len(levels)), window_of(levels, u, m)
    chosen = levels[near]
    d = np.diff(chosen).mean() if len(near) > 1 else 1.0
    bounds = np.concatenate([[-np.inf], (chosen[1:] + chosen[:-1]) / 2, [np.inf]])
    result[near] = np.diff(stats.logistic.cdf(bounds, loc=u, scale=spread * d))
    return result


def table_of(levels: Levels, scale: float, spread: float, m: int, location: Tensor = LOCATION) -> np.ndarray:
    values = values_of(levels)
    return np.array([law_of(values, u, spread, m) for u in (location.double() / scale).reshape(-1).tolist()])


def codes(levels: Levels, m: int, scale: float = 0.5, spread: float = 0.4, location: Tensor = LOCATION) -> Codes:
    return Codes(location, torch.tensor(scale), levels, torch.tensor(spread), nearest=m)


@pytest.mark.parametrize(("name", "m"), CASES)
def test_code_probabilities_are_logistic_cells(name: str, m: int) -> None:
    levels, probs = BOOKS[name], table_of(BOOKS[name], 0.5, 0.4, m)
    window, log_probs = codes(levels, m).window()
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(2, 3), atol=1e-6)
    spread_out = np.zeros_like(probs)
    for row, (of_row, p) in enumerate(zip(window.reshape(6, -1), log_probs.reshape(6, -1).exp(), strict=True)):
        spread_out[row, [list(values_of(levels)).index(v) for v in of_row.tolist()]] = p.numpy()
    np.testing.assert_allclose(spread_out, probs, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "m"), CASES)
def test_code_mean_entropy_and_divergence_by_enumeration(name: str, m: int) -> None:
    levels, probs = BOOKS[name], table_of(BOOKS[name], 0.5, 0.4, m)
    law = codes(levels, m)
    np.testing.assert_allclose(law.mean.reshape(-1).numpy(), probs @ values_of(levels), rtol=1e-4, atol=1e-5)
    assert float(law.entropy()) == pytest.approx(stats.entropy(probs, axis=1).sum(), rel=1e-4, abs=1e-6)
    uniform_law = np.full_like(probs, 1 / probs.shape[1])
    expected = stats.entropy(probs, uniform_law, axis=1).sum()
    assert float(kl_divergence(law, UniformCodes(law.event_shape, levels))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "m"), CASES)
def test_code_log_prob_sums_over_weights(name: str, m: int) -> None:
    levels, probs, law = BOOKS[name], table_of(BOOKS[name], 0.5, 0.4, m), codes(BOOKS[name], m)
    best = probs.argmax(1)
    value = torch.tensor(values_of(levels)[best]).float().reshape(2, 3)
    assert float(law.log_prob(value)) == pytest.approx(np.log(probs.max(1)).sum(), rel=1e-4, abs=1e-5)
    if len(window_of(values_of(levels), 0.0, m)) < len(values_of(levels)):
        far = value.clone()
        far[0, 0] = float(values_of(levels)[-1])  # the location -9 lies at the other end
        assert float(law.log_prob(far)) == -math.inf


@pytest.mark.parametrize(("name", "m"), CASES)
def test_code_draws_fit_the_law(name: str, m: int) -> None:
    levels, probs = BOOKS[name], table_of(BOOKS[name], 0.5, 0.4, m)
    draws = codes(levels, m, location=LOCATION.repeat(2000, 1)).sample().reshape(2000, 6).numpy()
    for weight in range(6):
        counts = np.array([(draws[:, weight] == level).sum() for level in values_of(levels)])
        assert counts.sum() == 2000
        assert chi_square(counts, probs[weight]) > 0.001


def test_many_draws_at_once_are_independent() -> None:
    draws = codes(uniform(4), 2, spread=2.0).rsample((300,))
    assert draws.shape == (300, 2, 3)
    first, second = draws[:, 0, 2].numpy(), draws[:, 1, 0].numpy()
    assert stats.pearsonr(first, second).pvalue > 0.001
    assert len(set(first.tolist())) == 2


def test_one_nearest_level_is_deterministic_rounding() -> None:
    law = codes(UNEVEN, 1)
    assert float(law.entropy()) == 0
    assert torch.equal(law.rsample(), law.mode)
    assert law.mode.tolist() == [[-4.0, -1.5, 0.25], [0.25, 3.0, 3.0]]


@pytest.mark.parametrize(("book", "count"), [(pruned(), 1), (binary(), 2)])
def test_small_codebooks(book: Grid, count: int) -> None:
    law = codes(book, 2)
    probs = table_of(book, 0.5, 0.4, 2)
    assert law.nearest == count
    assert float(law.entropy()) == pytest.approx(stats.entropy(probs, axis=1).sum(), abs=1e-6)
    assert np.isin(law.rsample().numpy(), values_of(book)).all()
    np.testing.assert_allclose(law.mean.reshape(-1).numpy(), probs @ values_of(book), atol=1e-6)
    assert float(UniformCodes(law.event_shape, book).log_count()) == pytest.approx(6 * math.log(count))


def test_code_laws_refuse() -> None:
    with pytest.raises(ProbqError, match="at least 1"):
        codes(ternary(), 0)
    with pytest.raises(ProbqError, match="one draw at a time"):
        codes(ternary(), 2).expand((3,))


# The fused law of the two nearest levels


def mixed_grid() -> BroadcastGrid:
    """Three channels: pruned, binary and three signed bits."""
    columns = [torch.tensor(v).reshape(3, 1) for v in ([0, -1, -3], [1, 2, 1], [1, 2, 7])]
    return BroadcastGrid(*columns)


@pytest.mark.parametrize("book", [ternary(), uniform(4), uniform(3, signed=False), Grid(-5, 4, 4), binary()], ids=str)
def test_fused_law_agrees_with_the_generic_one(book: Grid) -> None:
    location = torch.randn(4, 50) * 2
    for _ in range(5):
        law = codes(book, 2, location=location)
        draw, generic = law.rsample(), codes(book, 2, location=location)
        window, log_probs = generic.window()
        hit = window == draw.unsqueeze(-1)
        assert (hit.sum(-1) == 1).all()
        assert float(law.log_prob(draw)) == pytest.approx(float(log_probs[hit].sum()), rel=1e-4)
        assert float(generic.log_prob(draw.clone())) == pytest.approx(float(law.log_prob(draw)), rel=1e-4)
        assert float(law.entropy()) == pytest.approx(float(generic.entropy()), rel=1e-4)


def plainly(book: Grid, location: Tensor, scale: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower level, step, and log-probabilities of the lower and upper level of the two-nearest law."""
    u = location / scale
    code = torch.floor((u.detach() - book.start) / book.step).clamp(0, book.count - 2)
    lower = book.start + book.step * code
    a = (u - lower - book.step / 2) / (book.step * spread)
    return lower, torch.tensor(float(book.step)), -torch.log1p(a.exp()), a - torch.log1p(a.exp())


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    location = (torch.randn(3, 4, dtype=torch.float64) * 1.5).requires_grad_()
    scale = torch.tensor([[0.5], [1.0], [0.25]], dtype=torch.float64, requires_grad=True)
    return location, scale, torch.tensor([[0.35]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("book", [ternary(), uniform(4), Grid(-5, 4, 4), binary()], ids=str)
def test_fused_gradients_are_those_of_the_plain_formulas(book: Grid) -> None:
    location, scale, spread = leaves()
    law = Codes(location, scale, book, spread)
    draw = law.rsample()
    lower, step, low, high = plainly(book, location, scale, spread)
    direction = torch.randn(3, 4, dtype=torch.float64)
    up = (draw.detach() - lower) / step
    mean = ((lower + step * high.exp()) * direction).sum()
    entropy = -(low.exp() * low + high.exp() * high).sum()
    log_prob = (up * high + (1 - up) * low).sum()
    actual: list[Tensor] = [(draw * direction).sum(), law.entropy(), law.log_prob(draw)]
    for ours, plain in zip(actual, (mean, entropy, log_prob), strict=True):
        a = torch.autograd.grad(ours, (location, scale, spread), retain_graph=True)
        b = torch.autograd.grad(plain, (location, scale, spread), retain_graph=True)
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(law.entropy(), entropy, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("levels", "m"), [(uniform(4), 2), (uniform(4), 3), (UNEVEN.double(), 3), (UNEVEN.double(), 99)]
)
def test_entropy_gradient_by_finite_differences(levels: Levels, m: int) -> None:
    location, scale, spread = leaves()

    def entropy(*values: Tensor) -> float:
        law = Codes(*values[:2], levels, values[2], nearest=m)  # type: ignore[misc]
        law.rsample()
        return law.entropy()  # type: ignore[return-value]

    gradients = torch.autograd.grad(entropy(location, scale, spread), (location, scale, spread))  # type: ignore[arg-type]
    for k, gradient in enumerate(gradients):
        for index in [(0, 0), (1, 0)] if k < 2 else [(0, 0)]:
            values = [[v.detach().clone() for v in (location, scale, spread)] for _ in range(2)]
            values[0][k][index] += 1e-6
            values[1][k][index] -= 1e-6
            slope = (entropy(*values[0]) - entropy(*values[1])) / 2e-6
            assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("levels", [uniform(8), uniform(8).levels()])
def test_levels_too_far_to_have_a_probability_have_no_gradient(levels: Levels) -> None:
    values = [torch.tensor(v, requires_grad=True) for v in (0.07, 0.05, 0.1)]
    law = Codes(values[0][None], values[1], levels, values[2], nearest=255)
    near = Codes(values[0][None], values[1], uniform(4), values[2], nearest=15)
    assert law.window()[1].exp().min().item() == 0  # it underflows
    for found, wanted in ((law.entropy(), near.entropy()), (kl_divergence(law, prior_of(law)), -near.entropy())):
        for a, b in zip(torch.autograd.grad(found, values), torch.autograd.grad(wanted, values), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def prior_of(law: Codes) -> UniformCodes:
    return UniformCodes(law.event_shape, law.levels)


@pytest.mark.parametrize(("levels", "m"), [(uniform(4), 3), (UNEVEN.double(), 2), (UNEVEN.double(), 99)])
def test_generic_draws_carry_the_gradient_of_the_mean(levels: Levels, m: int) -> None:
    location, scale, spread = leaves()
    law = Codes(location, scale, levels, spread, nearest=m)
    direction = torch.randn(3, 4, dtype=torch.float64)
    drawn = torch.autograd.grad((law.rsample() * direction).sum(), (location, scale, spread))

    def mean(*values: Tensor) -> float:
        return float((Codes(values[0], values[1], levels, values[2], nearest=m).mean * direction).sum())

    for k, gradient in enumerate(drawn):
        index = (2, 0) if k < 2 else (0, 0)
        values = [[v.detach().clone() for v in (location, scale, spread)] for _ in range(2)]
        values[0][k][index] += 1e-6
        values[1][k][index] -= 1e-6
        assert float(gradient[index]) == pytest.approx((mean(*values[0]) - mean(*values[1])) / 2e-6, rel=1e-4, abs=1e-6)


def test_channels_with_codebooks_of_their_own() -> None:
    """Each channel of a mixed grid is the law of that channel's codebook alone."""
    location, scale = torch.randn(3, 200), torch.tensor([[0.5], [0.4], [0.3]])
    law = Codes(location, scale, mixed_grid(), torch.tensor(0.3))
    parts = [
        Codes(location[k], scale[k], book, torch.tensor(0.3)) for k, book in enumerate((pruned(), binary(), uniform(3)))
    ]
    assert float(law.entropy()) == pytest.approx(sum(float(part.entropy()) for part in parts), rel=1e-5)
    assert torch.equal(law.mode, torch.stack([part.mode for part in parts]))
    assert torch.allclose(law.mean, torch.stack([part.mean for part in parts]), atol=1e-6)
    draw = law.rsample()
    assert float(law.entropy()) == pytest.approx(sum(float(part.entropy()) for part in parts), rel=1e-5)
    expected = sum(float(part.log_prob(row)) for part, row in zip(parts, draw, strict=True))
    assert float(law.log_prob(draw)) == pytest.approx(expected, rel=1e-4)
    assert float(law.log_prob(draw.clone())) == pytest.approx(expected, rel=1e-4)
    for row, book in zip(draw, (pruned(), binary(), uniform(3)), strict=True):
        assert np.isin(row.numpy(), values_of(book)).all()
    prior = UniformCodes(torch.Size((3, 200)), mixed_grid())
    assert prior.log_count() == pytest.approx(200 * (math.log(2) + math.log(7)))
    assert float(kl_divergence(law, prior)) == pytest.approx(prior.log_count() - float(law.entropy()), rel=1e-6)


def test_mixed_channels_pass_gradients_to_their_own_location_only() -> None:
    location = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    law = Codes(location, torch.ones(3, 1, dtype=torch.float64), mixed_grid(), torch.tensor(0.3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(law.rsample().sum(), location)
    assert gradient[0].abs().max() < 1e-20  # the pruned channel
    binary_mean = torch.sigmoid(location[1] / (2 * 0.3)) * 2 - 1
    assert torch.allclose(gradient[1], torch.autograd.grad(binary_mean.sum(), location)[0][1])


# The uniform prior


@pytest.mark.parametrize("levels", [uniform(3), UNEVEN, binary()], ids=["grid", "table", "binary"])
def test_uniform_codes_draw_every_level_alike(levels: Levels) -> None:
    law, values = UniformCodes(torch.Size((4000,)), levels), values_of(levels)
    draw = law.sample().numpy()
    counts = np.array([(draw == value).sum() for value in values])
    assert counts.sum() == 4000
    assert chi_square(counts, np.full(len(values), 1 / len(values))) > 0.01
    assert float(law.log_prob(torch.from_numpy(draw))) == pytest.approx(-4000 * math.log(len(values)), rel=1e-6)


def test_uniform_codes_draw_from_mixed_grids() -> None:
    draws = UniformCodes(torch.Size((3, 4000)), mixed_grid()).sample((2,))
    assert draws.shape == (2, 3, 4000)
    for channel, book in enumerate((pruned(), binary(), uniform(3))):
        values = values_of(book)
        counts = np.array([(draws[:, channel].numpy() == value).sum() for value in values])
        assert counts.sum() == 8000
        assert chi_square(counts, np.full(len(values), 1 / len(values))) > 0.001


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [uniform(4), UNEVEN], ids=["grid", "table"])
def test_first_code_is_that_of_the_window(levels: Levels, m: int) -> None:
    u, values = torch.linspace(-12, 12, 97), values_of(levels)
    expected = [window_of(values, value, m)[0] for value in u.tolist()]
    assert first_code(u, levels, m).tolist() == expected


def test_the_mode_is_the_most_probable_of_two() -> None:
    probs, law = table_of(UNEVEN, 0.5, 0.4, 2), codes(UNEVEN, 2)
    assert torch.equal(law.mode.reshape(-1).double(), torch.tensor(values_of(UNEVEN)[probs.argmax(1)]))
    assert torch.equal(nearest_level(LOCATION / 0.5, UNEVEN), law.mode)


def test_the_goodness_of_fit_test_refuses_a_wrong_law() -> None:
    assert chi_square(np.array([2100.0, 1900.0]), np.array([0.45, 0.55])) < 1e-6
