"""Relative errors by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Plan, ProbqError, Quantized, criteria
from probq.codebooks import binary, ladder
from probq.criteria.measuring.ready import with_scales

X = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])


def network(plan: Plan) -> Quantized:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -0.75], [0.25, 0.5]]))
        net[2].weight.copy_(torch.tensor([[2.0, -1.0]]))
    q = with_scales(probq.quantize(net, X, plan), [(X, None)])
    for _, quantizer in q.named_quantizers():
        with torch.no_grad():
            quantizer.log2_scale[0], quantizer.log2_scale[-1] = 0.0, -4.0  # the finer one is exact here
    return q


@pytest.mark.parametrize("tied", [False, True])
def test_errors_are_those_by_hand(tied: bool) -> None:
    tie = "all" if tied else None
    plan = Plan(weight=ladder(2, 8), input=ladder(1, 8, signed=False), scales="tensor", tie_weight=tie)
    energy = criteria.mixquant(network(plan), [(X[:1], torch.zeros(1)), X[1:]], progress=False)
    assert (energy.label, energy.unit) == ("mixquant", "relative squared error")
    rows = dict(zip(energy.names, energy.unary, strict=True))
    first = (0.25**2 + 0.25**2 + 0.5**2) / (1 + 0.75**2 + 0.25**2 + 0.5**2)  # levels 1, -1, 0 and, half up, 1
    second = (2 - 1) ** 2 / (2**2 + 1)  # levels 1 and -1
    np.testing.assert_allclose(rows["0.weight"], [first + second * tied, 0], rtol=1e-6)
    assert tied or rows["2.weight"].tolist() == pytest.approx([second, 0])
    # into the second layer go (1, 0.25), (1.25, 1) and (0, 1.5), rounded to (1, 0), (1, 1) and (0, 1)
    norm = 1 + 0.25**2 + 1.25**2 + 1 + 1.5**2
    np.testing.assert_allclose(rows["2.input"], [(0.25**2 + 0.25**2 + 0.5**2) / norm, 0], rtol=1e-6)


def test_zeros_have_no_relative_error() -> None:
    def zeros(plan: Plan) -> Quantized:
        net = nn.Linear(2, 2)
        with torch.no_grad():
            net.weight.zero_()
        return probq.quantize(net, X, plan)

    energy = criteria.mixquant(zeros(Plan(weight=ladder(2, 8))), [X], progress=False)
    assert energy.unary[0].tolist() == [0, 0]
    with pytest.raises(ProbqError, match=r"all numbers of \.weight are 0 and rounded to others"):
        criteria.mixquant(zeros(Plan(weight=ladder(binary(), 8))), [X], progress=False)
