"""What training computes in torch is what the integers mean in NumPy, with finite gradients at masks and ties."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probq.integer.normalisers import meaning
from probq.integer.normalisers.tables import argument_bits, coarse, fine, least_square, logarithms, octaves, root_bits
from probq.network.normalisers import simulation
from probq.network.quantizers.normalising import NormalisingStep
from probq.network.tracing.stand_ins import StandIn

E = meaning.Exponentials(coarse(), fine(), 24)


@st.composite
def rows(draw, bits):
    """Rows of one length: any numbers, close ones, or two far apart."""
    count = draw(st.sampled_from([2, 3, 7, 64, 300]))
    rng, top = np.random.default_rng(draw(st.integers(0, 2**32))), 2 ** (bits(count) - 1)
    reach = draw(st.sampled_from([1, 5, 2000, top]))
    middle = draw(st.integers(-top + reach, top - reach))
    return rng.integers(middle - reach, middle + reach, (4, count))


@settings(max_examples=150, deadline=None)
@given(rows(lambda count: 22))
def test_softmax_in_training_is_that_of_integers(x):
    found = simulation.probabilities(torch.from_numpy(x)).numpy() * 2**15
    assert np.array_equal(found, meaning.softmax(x, E, 15))
    found = simulation.log_probabilities(torch.from_numpy(x)).numpy() * 2**12
    assert np.array_equal(found, meaning.log_softmax(x, E, octaves(x.shape[-1]), logarithms(), 4))


@settings(max_examples=150, deadline=None)
@given(rows(argument_bits), st.booleans(), st.sampled_from([0.0, 1e-12, 1e-5, 2.0]), st.integers(-20, 3))
def test_normalisation_in_training_is_that_of_integers(x, centred, eps, exponent):
    count = x.shape[-1]
    exponent = max(exponent, -20 if eps < 1e-6 else -12)  # as a step chooses it
    found = simulation.normalised(torch.from_numpy(x), centred, eps, exponent).numpy() * 2**12
    added = least_square(count, eps, exponent)
    assert np.array_equal(found, meaning.normalise(x, centred, added, root_bits(count), 12))


def test_a_masked_score_has_probability_zero_and_a_finite_gradient():
    step = NormalisingStep(StandIn("softmax", kwargs={"axis": -1}), float("inf"))
    x = torch.tensor([[0.5, -torch.inf, 1.0, -1e9]], requires_grad=True)
    y = step.compute(x, torch.nn.Identity(), exact=False)
    y[0, 0].backward()
    assert y[0, [1, 3]].tolist() == [0.0, 0.0]
    p = torch.softmax(torch.tensor([0.5, 1.0]), 0)
    torch.testing.assert_close(x.grad, torch.tensor([[p[0] * p[1], 0.0, -p[0] * p[1], 0.0]]))


def test_numbers_that_are_all_the_same_give_the_shift_also_without_eps():
    norm = torch.nn.LayerNorm(3, eps=0.0)
    torch.nn.init.constant_(norm.bias, 0.25)
    options = {"axes": 1, "eps": 0.0, "gain": "weight", "shift": "bias"}
    step = NormalisingStep(StandIn("layer_norm", kwargs=options), 4.0)
    assert step.compute(torch.full((2, 3), 1.7), norm, exact=False).tolist() == [[0.25] * 3] * 2
