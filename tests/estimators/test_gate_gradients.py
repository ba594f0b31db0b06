"""Rounding of inputs and the gradients of gates: direct formulas, finite differences and unbiased parts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from probq.codebooks import Grid, uniform
from probq.codebooks.rounding.nearest import nearest_level
from probq.estimators.gate_gradients import GATE_SAMPLE, on_grid, random_part, round_input

GRIDS = (uniform(1), uniform(2), uniform(4), uniform(8))
SCALES = (1.0, 0.5, 0.25, 0.03125)


def rounded(x: np.ndarray, scale: float, grid: Grid) -> np.ndarray:
    """Nearest level by argmin, ties up."""
    levels = grid.start + grid.step * np.arange(grid.count)
    distance = np.abs(x[..., None] / scale - levels)
    last = grid.count - 1 - distance[..., ::-1].argmin(-1)
    return scale * levels[last]


def onehot(rung: int, count: int = 4) -> Tensor:
    return torch.eye(count, dtype=torch.float64)[rung].requires_grad_()


@pytest.mark.parametrize("rung", range(4))
@pytest.mark.parametrize("grids", [GRIDS, tuple(uniform(b, signed=False) for b in (1, 2, 4, 8)), (Grid(-5, 4, 4),) * 4])
def test_inputs_are_rounded_to_the_drawn_rung(rung: int, grids: tuple[Grid, ...]) -> None:
    x = torch.cat([torch.randn(200, dtype=torch.float64) * 3, torch.arange(-40, 40) / 8])
    y = round_input(x, onehot(rung), torch.tensor(SCALES, dtype=torch.float64), grids)
    np.testing.assert_array_equal(y.detach().numpy(), rounded(x.numpy(), SCALES[rung], grids[rung]))
    assert torch.equal(on_grid(x, torch.tensor(SCALES[rung]), grids[rung]), y.detach())


@pytest.mark.parametrize("rung", range(4))
def test_gradient_of_an_input_is_clipped_straight_through(rung: int) -> None:
    x = (torch.randn(300, dtype=torch.float64) * 3).requires_grad_()
    y = round_input(x, onehot(rung), torch.tensor(SCALES, dtype=torch.float64), GRIDS)
    direction = torch.randn(300, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * direction).sum(), x)
    reach = SCALES[rung] * (GRIDS[rung].stop + GRIDS[rung].step / 2)
    inside = x.detach().abs() < reach
    assert torch.equal(gradient, direction * inside)
    assert 0 < int(inside.sum()) < 300


@pytest.mark.parametrize("rung", range(4))
def test_gradient_of_a_scale_by_its_formula(rung: int) -> None:
    """Learned step sizes: `dy/ds = round(u) - u` inside the range and the outermost level outside (Esser et al.)."""
    x = torch.randn(300, dtype=torch.float64) * 3
    scales = torch.tensor(SCALES, dtype=torch.float64, requires_grad=True)
    y = round_input(x, onehot(rung), scales, GRIDS)
    direction = torch.randn(300, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * direction).sum(), scales)
    u, grid = x / SCALES[rung], GRIDS[rung]
    level = y.detach() / SCALES[rung]
    inside = (u > grid.start - grid.step / 2) & (u < grid.stop + grid.step / 2)
    expected = (direction * torch.where(inside, level - u, level)).sum()
    assert float(gradient[rung]) == pytest.approx(float(expected), rel=1e-9)
    assert [float(g) for k, g in enumerate(gradient) if k != rung] == [0, 0, 0]


def test_gradient_of_the_scale_outside_the_range_by_finite_differences() -> None:
    x, step = torch.tensor([50.0, -70.0, 90.0], dtype=torch.float64), 1e-6
    scales = torch.tensor(SCALES, dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((round_input(x, onehot(1), scales, GRIDS) * direction).sum(), scales)
    moved = scales.detach() + step * torch.eye(4, dtype=torch.float64)[1]
    slope = (
        (round_input(x, onehot(1), moved, GRIDS) - round_input(x, onehot(1), scales, GRIDS)) * direction
    ).sum() / step
    assert float(gradient[1]) == pytest.approx(float(slope.detach()), rel=1e-6)


def test_gradient_of_a_scale_in_bfloat16_is_summed_more_finely() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16).requires_grad_()
    scales = torch.tensor([0.25, 0.5], requires_grad=True)
    direction = torch.randn(50_000, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    y = round_input(x, torch.tensor([0.0, 1.0]), scales, [uniform(2), uniform(4)])
    (of_x, of_scales) = torch.autograd.grad(y, (x, scales), direction)
    assert y.dtype == torch.bfloat16
    exact = (direction.double() @ y.detach().double() - of_x.double() @ x.detach().double()) / 0.5
    assert float(of_scales[1]) == pytest.approx(float(exact), rel=1e-5)


def test_gradient_of_gates_is_the_product_with_every_rung() -> None:
    """A loss linear in the output: moving weight `e` to rung k changes it by `e <direction, value of rung k>`."""
    x, direction = torch.randn(7, 9, dtype=torch.float64), torch.randn(7, 9, dtype=torch.float64)
    chosen = onehot(2)
    y = round_input(x, chosen, torch.tensor(SCALES, dtype=torch.float64), GRIDS)
    (gradient,) = torch.autograd.grad((y * direction).sum(), chosen)
    expected = [(direction.numpy() * rounded(x.numpy(), s, g)).sum() for s, g in zip(SCALES, GRIDS, strict=True)]
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-9)


def test_random_part_takes_the_same_rows_of_every_tensor() -> None:
    x = torch.randn(8, GATE_SAMPLE // 4)
    part = random_part(x)
    rows = [row for row in range(8) if any(torch.equal(x[row], kept) for kept in part(x))]
    assert part(x).numel() <= GATE_SAMPLE
    assert len(rows) == len(part(x)) == 4
    assert torch.equal(part(torch.arange(8)), torch.tensor(rows))


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (64, 40), (10, 10), (5, 1)])
def test_random_parts_are_unbiased(rows: int, size: int) -> None:
    """The expectation of (rows / part) * indicator is exactly 1 for every row: a sum over all slices by their draws."""
    weights, draws = torch.zeros(rows), 4000
    for _ in range(draws):
        kept = random_part(torch.zeros(rows), size)(torch.arange(rows))
        assert 1 <= len(kept) <= size
        weights[kept] += rows / len(kept) / draws
    deviation = np.sqrt((rows / max(1, size // 2)) / draws)
    assert (weights - 1).abs().max() < 5 * deviation


def test_random_part_of_what_has_no_axis() -> None:
    assert float(random_part(torch.tensor(3.0))(torch.tensor(3.0))) == 3


def test_gate_gradient_from_a_part_is_nearly_unbiased() -> None:
    """The mean over many parts is near the whole product: rows are alike, so a few standard errors at most."""
    x = torch.randn(64, 1024)  # twice what one part holds
    direction = torch.randn(64, 1024)
    scales, draws = torch.tensor(SCALES), []
    for _ in range(40):
        chosen = torch.tensor([0.0, 0.0, 1.0, 0.0], requires_grad=True)
        (gradient,) = torch.autograd.grad((round_input(x, chosen, scales, GRIDS) * direction).sum(), chosen)
        draws.append(gradient.numpy())
    whole = [float((direction.numpy() * rounded(x.numpy(), s, g)).sum()) for s, g in zip(SCALES, GRIDS, strict=True)]
    error = np.std(draws, axis=0) / np.sqrt(40)
    assert (error > 0).all()
    assert (np.abs(np.mean(draws, axis=0) - whole) < 5 * error).all()


def test_straight_through_rounding_passes_the_gradient_inside_only() -> None:
    u = torch.tensor([-3.0, -1.4, 0.2, 1.4, 1.6], requires_grad=True)
    (gradient,) = torch.autograd.grad(nearest_level(u, uniform(2), straight_through=True).sum(), u)
    assert gradient.tolist() == [0, 1, 1, 1, 0]
    table = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True)
    out = nearest_level(u, table, straight_through=True)
    of_table = torch.autograd.grad(out.sum(), table)[0]
    assert out.tolist() == [-2, -2, 0, 1, 1]
    assert of_table.tolist() == [2, 1, 2]
