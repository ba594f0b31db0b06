"""All random states that a fit may draw from are read and set together, so that it can go on where it stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
PARTS = ("sampler", "batch_sampler", "dataset")  # of a loader, which may have generators of their own
DEEPEST = 4


def random_states(*sources: Any) -> dict[str, Any]:
    """Return the random states of torch, NumPy and Python, and those of the generators that sources of batches hold.

    They are numbers, text, tensors, and lists and dicts of these.

    Args:
        sources: loaders; their own attributes are looked at, and those of their samplers and data sets.
    """
    states = {
        "torch": torch.get_rng_state(),
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002 (what others draw from)
        "python": random.getstate(),
        "generators": [_state(one) for one in generators(*sources)],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any], *sources: Any) -> None:
    """Set the states that `random_states` gave, as far as they are there."""
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        np.random.set_state(states["numpy"])  # noqa: NPY002
    if "python" in states:
        random.setstate(states["python"])
    for one, state in zip(generators(*sources), states["generators"], strict=False):
        _set(one, state)
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def generators(*sources: Any) -> list[Generator]:
    """Return the generators that sources of batches hold, each once, always in the same order."""
    found = {id(one): one for source in sources for one in _held(source, DEEPEST)}
    return list(found.values())


def _held(source: Any, deepest: int) -> Iterator[Generator]:
    own = getattr(source, "__dict__", {})
    for _, value in sorted(own.items()):
        if isinstance(value, Generator):
            yield value
    for name in PARTS if deepest else ():
        if name in own:
            yield from _held(own[name], deepest - 1)


def _state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _plain(generator.get_state(legacy=False))


def _set(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _plain(state: Any) -> Any:
    """Return a NumPy state with lists in place of arrays, which compare as a whole."""
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state
