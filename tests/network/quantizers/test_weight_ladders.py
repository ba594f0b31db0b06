"""Ladders that do not suit a weight are told when the network is quantized."""

import warnings

import pytest
import torch
from torch import nn

import probq
from probq import Plan
from probq.codebooks import ladder, ternary, uniform


@pytest.mark.parametrize("rungs", [ladder(4, signed=False), ladder(ternary(), uniform(4, signed=False))])
def test_negative_weights_without_negative_levels_are_told(rungs: probq.codebooks.Ladder) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"weight has negative values .* no negative levels at 4 bits"):
        probq.quantize(nn.Linear(3, 2), torch.rand(4, 3), Plan(weight=rungs))


def test_weights_that_are_never_negative_may_have_such_a_ladder() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.abs_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probq.quantize(layer, torch.rand(4, 3), Plan(weight=ladder(0, 4, signed=False)))
