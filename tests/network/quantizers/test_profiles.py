"""What scales weights have: integers of five bits times a power of two by default, powers of two for FPGA flows."""

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.codebooks import ladder

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def mantissas(plan: probq.Plan | None) -> np.ndarray:
    """Of every scale, times 32: 16 to 31, and 16 where it is a power of two."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)).eval()
    q = probq.quantize(net, X, plan)
    scales = [weight.scales().detach().double().numpy().reshape(-1) for weight in q.weights.values()]
    return np.frexp(np.concatenate(scales))[0] * 32


def test_scales_have_five_bits_by_default() -> None:
    found = mantissas(None)
    assert set(found) <= set(range(16, 32))
    assert len(set(found)) > 4
    np.testing.assert_array_equal(found, mantissas(probq.Plan(profile="dyadic")))


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_powers_of_two_where_a_plan_says_so(gates: str) -> None:
    assert set(mantissas(probq.Plan(gates=gates, profile="shift"))) == {16}


@pytest.mark.parametrize("profile", [None, "shift"])
def test_weights_with_gates_of_their_own_have_powers_of_two(profile: str | None) -> None:
    """Else a sum of weights on several rungs would have no integers."""
    plan = probq.Plan(weight=ladder(2, 4, 8), gates="weight", profile=profile)
    assert set(mantissas(plan)) == {16}
    with pytest.raises(probq.ProbqError, match='needs profile="shift"'):
        probq.Plan(weight=ladder(2, 4, 8), gates="weight", profile="dyadic")


def test_uniform_widths_have_the_same_scales() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 9)
    found, wanted = (
        probq.quantize(net, X, plan).weights[".weight"].scales()
        for plan in (probq.uniform(4, 8), probq.Plan(ladder(4)))
    )
    assert torch.equal(found, wanted)


def test_another_profile_is_told() -> None:
    with pytest.raises(probq.ProbqError, match=r"Plan\(profile=...\) takes one of 'dyadic', 'shift', not 'float'"):
        probq.Plan(profile="float")
