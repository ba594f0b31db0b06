"""The user's data is any iterable of `(input, target)`, or of dictionaries that hold the targets as `labels`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from probq.utils.errors import ProbqError
from probq.utils.structures.targets import Targets
from probq.utils.structures.tensors import arguments, map_tensors, rows_of, some_rows, tensors_in
from probq.utils.structures.walk import leaves

LABELS = "labels"  # the key of the targets in a dictionary


class Batches:
    """These batches can be read again and again; they know their number and that of the examples.

    Args:
        batches: any iterable of `(input, target)`, usually a `DataLoader`; one that can be read only once is kept in
            memory, and one without a length is read once more at the start, to count it. Several inputs are a tuple, or
            a dictionary by keyword, several targets a tuple or dictionary; a dictionary in place of a pair holds the
            targets as `labels`.
        device: where the tensors are moved.
        name: the name of the data, for messages.

    Raises:
        ProbqError: if there is no batch.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device, name: str = "data") -> None:
        if not isinstance(batches, Iterable):
            raise ProbqError(
                f"the {name} is an iterable of (input, target), such as a DataLoader, not {type(batches).__name__}"
            )
        self.device, self.name = device, name
        self.counts: tuple[int, int] | None = None
        self.source = cast(Any, list(batches) if isinstance(batches, Iterator) else batches)
        if not _has_length(self.source):
            self.counts = self._counted()
        if len(self) == 0:
            raise ProbqError(
                f"the {name} holds no batch; give it one, unless the data set is empty or smaller than one batch with "
                "drop_last"
            )

    def __len__(self) -> int:
        return len(self.source) if self.counts is None else self.counts[0]

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        number = -1
        for number, batch in enumerate(self._opened()):
            yield self._checked(batch, number)
        if number < 0 and self.counts is not None and self.counts[0]:
            raise ProbqError(f"the {self.name} gave no batch when it was read again; give a list or a DataLoader")

    def read(self, skipped: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """Return what is left of one pass once some batches are skipped, which is done at once.

        Raises:
            ProbqError: if there are not so many.
        """
        reading = self._opened()
        for number in range(skipped):
            try:
                next(reading)
            except StopIteration:
                raise ProbqError(
                    f"the {self.name} gave {number} batches when it was read again, and {skipped} were read before; "
                    "give the same data"
                ) from None
        return (self._checked(batch, number) for number, batch in enumerate(reading, skipped))

    @property
    def size(self) -> int:
        """Return the number of examples.

        Where only a full pass could tell, it is that of batches times the first one's.
        """
        if self.counts is not None:
            return self.counts[1]
        data = getattr(self.source, "dataset", None)
        if isinstance(data, Sized):
            return len(data)
        if isinstance(self.source, list | tuple):
            return sum(len(y) for _, y in self)
        return len(self) * len(next(iter(self))[1])

    def _opened(self) -> Iterator[Any]:
        """Return the batches of one pass, as they come."""
        return iter(self.source)

    def _counted(self) -> tuple[int, int]:
        """Return batches and examples of one pass, where no length tells."""
        sizes = [len(y) for _, y in self]
        return len(sizes), sum(sizes)

    def _checked(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        place = f"batch {number} of the {self.name}"
        batch = as_pair(batch)
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor | Targets):
            raise ProbqError(f"{place} is not an (input, target) pair with a tensor as target, but {_described(batch)}")
        if not batch[1].dim() or not len(batch[1]):
            raise ProbqError(f"{place} holds no example; leave it out, or give targets a batch axis first")
        x = arguments(batch[0])
        targets = batch[1].of if isinstance(batch[1], Targets) else batch[1]
        for tensor in tensors_in((x, targets)):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ProbqError(f"{place} holds a value that is not finite; clean the data first")
        moved = map_tensors(lambda a: a.to(self.device), x)
        y: Any = batch[1].to(self.device)
        return (moved[0] if isinstance(batch[0], Tensor) else moved), y


def first_examples(
    batches: Iterable[Any], examples: int, device: torch.device, name: str
) -> list[tuple[Any, Tensor | None]]:
    """Return the first examples of data with or without labels, in memory, as pairs of inputs and targets or None.

    Args:
        batches: an iterable of `(input, target)`, or of inputs: tensors, or tuples of one as a `DataLoader` gives them.
        examples: the greatest number of examples.
        device: where the tensors are moved.
        name: of the function that asks, for messages.

    Raises:
        ProbqError: if there are none, a batch holds none or is something else, has targets for other examples than its
            inputs, or a value is not finite.
    """
    if isinstance(batches, Tensor):
        raise ProbqError(f"{name} takes batches, not one tensor; give a list of it: [x]")
    if isinstance(batches, tuple) and all(isinstance(part, Tensor) for part in batches):
        raise ProbqError(
            f"{name} takes a list of batches, not one tuple of tensors; give [(x, y)], or [x] of inputs alone"
        )
    if not isinstance(batches, Iterable):
        raise ProbqError(f"{name} takes an iterable of batches, such as a DataLoader, not {type(batches).__name__}")
    kept: list[tuple[Any, Tensor | None]] = []
    left = examples
    for number, batch in enumerate(batches):
        inputs, target = _unlabelled(batch)
        several = arguments(inputs)
        if not isinstance(next(leaves(several), None), Tensor):
            raise ProbqError(
                f"a batch is a tensor of inputs, or (input, target); batch {number} for {name} is a "
                f"{type(batch).__name__}"
            )
        if target is None and len(several) == 2 and isinstance(several[1], Sequence | np.ndarray):
            raise ProbqError(f"batch {number} for {name} {_described(several)}")
        _check_examples(f"batch {number} for {name}", several, target)
        cut = map_tensors(lambda a: a.to(device), some_rows(several, 0, left))
        own = cut[0] if isinstance(inputs, Tensor) else cut
        kept.append((own, None if target is None else target[:left].to(device)))
        left -= rows_of(several)
        if left <= 0:
            break
    if not kept:
        raise ProbqError(f"{name} needs data: batches of (input, target), or of inputs alone where it takes them")
    return kept


def _check_examples(place: str, inputs: Sequence[Any], target: Tensor | None) -> None:
    """Raise unless a batch holds examples of finite numbers, and a target for each where it has any."""
    first = next(tensors_in(inputs))
    if not first.dim() or not len(first):
        raise ProbqError(f"{place} holds no example; leave it out, or give inputs a batch axis first")
    if target is not None and target.shape[:1] != first.shape[:1]:
        raise ProbqError(
            f"{place} has inputs of shape {tuple(first.shape)} and targets of shape {tuple(target.shape)}; give a "
            "target for each example, along the first axis of both"
        )
    for tensor in tensors_in((inputs, target)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ProbqError(f"{place} holds a value that is not finite; clean the data first")


def with_targets(found: Iterable[tuple[Any, Tensor | None]]) -> list[tuple[Any, Tensor]]:
    """Return batches with zeros in the place of absent targets, for what does not look at them."""
    return [(x, next(tensors_in(x)).new_zeros(rows_of(x)) if y is None else y) for x, y in found]


def as_pair(batch: Any) -> Any:
    """Return a dictionary that holds `labels` as a pair of inputs and targets, and several targets as `Targets`.

    None among these stands for an output that has none.
    """
    if isinstance(batch, Mapping) and LABELS in batch:
        batch = ({key: value for key, value in batch.items() if key != LABELS}, batch[LABELS])
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Mapping | tuple | list):
        found = [leaf for leaf in leaves(batch[1]) if leaf is not None]
        if found and all(isinstance(y, Tensor) and y.dim() for y in found) and len({len(y) for y in found}) == 1:
            return batch[0], Targets(batch[1])
    return batch


def _unlabelled(batch: Any) -> tuple[Any, Tensor | None]:
    """Return the inputs of a batch, and its targets if it has any."""
    batch = as_pair(batch)
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor | Targets | None):
        return batch[0], cast(Any, batch[1])
    return batch, None


def _has_length(batches: Any) -> bool:
    """Return whether `len` works: a `DataLoader` over an `IterableDataset` has it, and raises."""
    try:
        return isinstance(batches, Sized) and len(batches) >= 0
    except TypeError:
        return False


def _described(batch: Any) -> str:
    """Return what a batch is in place of a pair, and what to give."""
    if isinstance(batch, Mapping):
        first = next(iter(batch), "x")
        return (
            f"a mapping with {_keys(batch)}; give pairs, such as [(b[{first!r}], b[...]) for b in loader], or name the "
            f"targets {LABELS!r}"
        )
    if isinstance(batch, tuple | list) and len(batch) > 2:
        return f"has {len(batch)} parts; give pairs, several inputs as a tuple: ((a, b), target)"
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return f"has a {type(batch[1]).__name__} as target; give torch.as_tensor(...) of it"
    return f"a {type(batch).__name__}"


def _keys(mapping: Mapping[Any, Any]) -> str:
    return f"the keys {', '.join(repr(key) for key in list(mapping)[:6])}"
