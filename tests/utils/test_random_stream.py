"""Random numbers of a call's own: fits, draws and predictions beside one another in threads."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq.utils.random_stream import Stream, StreamIterator

X, Y = torch.randn(48, 4), torch.arange(48) % 3


def floats() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def network() -> probq.Quantized:
    return probq.quantize(floats(), X)


def fitted(seed: int) -> dict[str, Tensor]:
    q = network()
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    probq.fit(q, loader, probq.Budget(percent=1), epochs=8, seed=seed, progress=False)
    return q.state_dict()


def beside(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that run at the same time, each in a thread."""
    results: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(place: int) -> None:
        start.wait()
        try:
            results[place] = calls[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fits_in_threads_are_those_one_after_another() -> None:
    alone = [fitted(seed) for seed in (1, 2)]
    torch.manual_seed(5)  # networks are made in threads too, from the global state
    made = [network(), network()]

    def fit(place: int) -> dict[str, Tensor]:
        loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
        probq.fit(made[place], loader, probq.Budget(percent=1), epochs=8, seed=place + 1, progress=False)
        return made[place].state_dict()

    assert all(same(a, b) for a, b in zip(alone, beside(lambda: fit(0), lambda: fit(1)), strict=True))


@pytest.mark.filterwarnings("ignore:.*was never fitted")
def test_predictions_beside_a_fit_change_neither() -> None:
    alone, q, other = fitted(1), network(), network()
    expected = other.predict(X, draws=3, seed=4)

    def fit() -> dict[str, Tensor]:
        loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
        probq.fit(q, loader, probq.Budget(percent=1), epochs=8, seed=1, progress=False)
        return q.state_dict()

    found, predicted = beside(fit, lambda: [other.predict(X, draws=3, seed=4) for _ in range(10)])
    assert same(alone, found)
    assert all(torch.equal(p, expected) for p in predicted)


def test_one_network_is_called_in_several_threads() -> None:
    q = network()
    q = q.at(q.mode())
    expected = q(X)
    calls = [lambda: [q(X) for _ in range(15)] for _ in range(3)]
    for outputs in beside(*calls):
        assert all(torch.equal(output, expected) for output in outputs)
    assert torch.equal(q(X), expected)
    assert isinstance(q.net[0].weight, nn.Parameter)


def test_networks_are_quantized_and_lowered_in_threads() -> None:
    made = [floats() for _ in range(3)]  # beforehand: their weights come from the global state, which threads share

    def lowered(place: int) -> str:
        return probq.lower(probq.quantize(made[place], X)).sha256()

    found = beside(*[partial(lowered, place) for place in range(3)])
    assert set(found) == {lowered(0)}


def test_steps_leave_the_global_random_state_to_their_user() -> None:
    expected, found = [], []
    for other in (False, True):
        q = network()
        torch.manual_seed(3)
        running = probq.steps(q, [(X, Y)], epochs=6, seed=1)
        for step in running:
            (found if other else expected).append(step.loss)
            if other:
                torch.rand(7)
    assert found == expected
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(probq.steps(network(), [(X, Y)], epochs=2, seed=1))
    torch.manual_seed(3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*was never fitted")
def test_draws_without_a_seed_differ_and_follow_the_global_state() -> None:
    q = network()
    torch.manual_seed(8)
    first, second = ([draw.widths for draw in q.sample(6)] for _ in range(2))
    torch.manual_seed(8)
    assert [draw.widths for draw in q.sample(6)] == first
    assert first != second


def test_a_stream_goes_on_where_it_stood() -> None:
    stream = Stream(11)
    parts = []
    for _ in range(3):
        with stream.drawing():
            parts.append(torch.rand(4))
        torch.rand(5)
    assert torch.equal(torch.cat(parts), torch.rand(12, generator=torch.Generator().manual_seed(11)))


def test_a_stream_without_a_seed_is_the_global_one() -> None:
    torch.manual_seed(2)
    with Stream(None).drawing():
        first = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(3)]), torch.rand(6, generator=torch.Generator().manual_seed(2)))


def test_an_end_reaches_the_generator() -> None:
    ended = []

    def items() -> Any:
        try:
            yield 1
            yield 2
        finally:
            ended.append(True)

    running = StreamIterator(items(), Stream(0))
    assert next(running) == 1
    running.close()
    assert ended == [True]
    assert list(running) == []
