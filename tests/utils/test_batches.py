"""Batches in the forms in which people have them: what is read, and what is refused with what to give instead."""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import probq
from probq import ProbqError
from probq.utils.batches import Batches, first_examples
from probq.utils.structures.tensors import some_rows

X, Y = torch.randn(48, 4), torch.arange(48) % 3
PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 48, 16)]
CPU = torch.device("cpu")


class Lines(IterableDataset[Any]):
    """Examples without a length, as a file has them."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(X, Y, strict=True)


class Counted(Lines):
    def __len__(self) -> int:
        return len(X)


class Again:
    """Can be read again and again, and has no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(PAIRS)


SOURCES: dict[str, Any] = {
    "list": lambda: PAIRS,
    "generator": lambda: (pair for pair in PAIRS),
    "map": lambda: map(tuple, PAIRS),
    "iterable without length": Again,
    "iterable data set": lambda: DataLoader(Lines(), batch_size=16, generator=torch.Generator()),
    "iterable data set with length": lambda: DataLoader(Counted(), batch_size=16, generator=torch.Generator()),
    "slice of a loader": lambda: itertools.islice(DataLoader(Lines(), batch_size=16), 3),
}


def network() -> probq.Quantized:
    torch.manual_seed(0)
    return probq.quantize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), X)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_source_is_read_to_its_end_as_often_as_needed(make: Any) -> None:
    data = Batches(make(), CPU)
    assert (len(data), data.size) == (3, 48)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in data]), X)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_source_fits_and_validates_alike(make: Any) -> None:
    losses = [step.loss for step in probq.fit(network(), PAIRS, epochs=2, seed=0, progress=False).steps]
    history = probq.fit(network(), make(), epochs=2, seed=0, validation=make(), progress=False, evaluations=0)
    assert [step.loss for step in history.steps] == losses
    assert len(history.validation) == 2
    assert probq.decide(network(), probq.Budget(percent=2), make(), evaluations=3, progress=False).percent() <= 2


class Shuffled(IterableDataset[Any]):
    """Gives its examples in another order each time."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(self.passes))
        return zip(X[order], Y[order], strict=True)


def test_data_without_a_length_is_read_anew_in_every_epoch() -> None:
    lines = Shuffled()
    probq.fit(network(), DataLoader(lines, batch_size=16), epochs=3, progress=False)
    assert lines.passes >= 1 + 3  # one pass counts


def test_data_that_ends_for_good_is_told() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = iter(PAIRS)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return self.left

    with pytest.raises(ProbqError, match="gave no batch when it was read again"):
        probq.fit(network(), Once(), epochs=3, progress=False)


def test_data_that_does_not_fit_leaves_no_likelihood_behind() -> None:
    q = network()
    with pytest.raises(ProbqError, match="targets of shape"):
        probq.fit(q, [(X, torch.rand(48))], progress=False)
    assert q.likelihood is None
    assert probq.fit(q, PAIRS, epochs=1, progress=False).steps


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rates": ({"rates": 0.1}, "rates is probq.Rates"),
    "a name as likelihood": ({"likelihood": "categorical"}, "likelihood is a function from outputs to a law"),
    "a loss as likelihood": (
        {"likelihood": nn.CrossEntropyLoss()},
        "the likelihood does not take the network's output",
    ),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_options_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        probq.fit(network(), PAIRS, epochs=1, progress=False, **options)


REFUSED: dict[str, tuple[Any, str]] = {
    "mapping": ({"x": X, "y": Y}, r"a mapping with the keys 'x', 'y'; give pairs, such as \[\(b\['x'\], b\[...\]\)"),
    "empty mapping": ({}, "a mapping with the keys"),
    "named parts": (
        collections.namedtuple("Named", "x, y, weight")(X, Y, Y),
        "has 3 parts; give pairs, several inputs as a tuple",
    ),
    "targets in a list": ((X, Y.tolist()), "a list as target; give torch.as_tensor"),
    "targets of numpy": ((X, np.arange(48)), "a ndarray as target; give torch.as_tensor"),
    "inputs by another name": (({"x": X}, Y), "unexpected keyword argument 'x'"),
    "tensor": (X, "but a Tensor"),
    "nothing": (None, "but a NoneType"),
}


@pytest.mark.parametrize(("batch", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_pair_is_told_with_what_to_give(batch: Any, message: str) -> None:
    for call in (
        lambda: probq.fit(network(), [batch], progress=False),
        lambda: probq.decide(network(), probq.Budget(percent=2), [batch], progress=False),
    ):
        with pytest.raises(ProbqError, match=message) as caught:
            call()
        assert len(str(caught.value)) < 300


UNFIT: list[tuple[Any, str]] = [
    ((X, Y.numpy()), "has a ndarray as target; give torch.as_tensor"),
    ((X, Y.tolist()), "has a list as target; give torch.as_tensor"),
    ((X, Y[0]), r"has inputs of shape \(48, 4\) and targets of shape \(\); give a target for each example"),
    ((X, Y[:10]), r"has inputs of shape \(48, 4\) and targets of shape \(10,\)"),
    ((X, torch.cat([Y, Y])), r"has inputs of shape \(48, 4\) and targets of shape \(96,\)"),
    ((X, Y / 0), "holds a value that is not finite"),
]


@pytest.mark.parametrize(("batch", "message"), UNFIT)
def test_targets_that_do_not_fit_are_told_even_where_a_cut_would_make_them_fit(batch: Any, message: str) -> None:
    with pytest.raises(ProbqError, match=f"batch 1 for kl {message}"):
        first_examples([(X[:1], Y[:1]), batch], 11, CPU, "kl")


def test_some_rows_are_those_of_what_has_an_axis_of_examples() -> None:
    whole, number = torch.rand(5, 4), torch.tensor(3.0)
    cut = some_rows((X, Y, whole, number, "text"), 2, 7)
    assert torch.equal(cut[0], X[2:7])
    assert torch.equal(cut[1], Y[2:7])
    assert cut[2:] == (whole, number, "text")
