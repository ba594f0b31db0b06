"""This part of the page says whether the confidence of predictions means what it claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from probq import plot
from probq.decisions.assignment import Assignment
from probq.decisions.draw_warnings import count_untuned, untuned_caution
from probq.evaluation.metrics.reliability import reliability_of
from probq.evaluation.reporting.page import Element, Paragraph, figure
from probq.integer import IntegerModel
from probq.likelihoods import for_target, for_targets
from probq.likelihoods.classes import observed
from probq.likelihoods.per_output import OutputLaws, by_output
from probq.network.distributions.observation import Observation
from probq.network.quantized.quantized import Quantized
from probq.utils.batches import as_pair
from probq.utils.errors import ProbqError
from probq.utils.structures.targets import Targets
from probq.utils.structures.walk import map_leaves


class Predicted(NamedTuple):
    """These are predictions of one or several outputs.

    Attributes:
        probabilities: of classes, `[N, C]`; where there are several outputs of classes, of each by name.
        classes: what was right, `[N]`, likewise.
        caution: a sentence on draws whose widths were not tuned, which may be empty.
        left_out: outputs without classes.
    """

    probabilities: Any
    classes: Any
    caution: str
    left_out: Sequence[str]


def elements(predictions: Any, targets: Any, left_out: Sequence[str] = ()) -> list[Element]:
    """Return a sentence and a picture on calibration, for each output where there are several.

    Args:
        predictions: as `reliability_of` takes them, or a dictionary of them by output.
        targets: likewise.
        left_out: outputs without classes, of which nothing is said but that.

    Raises:
        ProbqError: as `reliability_of`; or targets are not of the same outputs.
    """
    if not isinstance(predictions, Mapping):
        return _elements("", predictions, targets)
    if not isinstance(targets, Mapping) or not predictions or set(targets) != set(predictions):
        raise ProbqError("predictions of several outputs take a dictionary of targets with the same keys")
    found = [part for name in predictions for part in _elements(f"{name}: ", predictions[name], targets[name])]
    said = Paragraph(f"Calibration is of classes, which these outputs have not: {', '.join(left_out)}.")
    return [*found, *([said] if left_out else [])]


def _elements(of: str, predictions: Any, targets: Any) -> list[Element]:
    found = reliability_of(predictions, targets)
    accuracy, confidence = (100 * value for value in found.means)
    gap = confidence - accuracy
    way = "over" if gap > 0 else "under"
    text = (
        f"{of}On {found.counts.sum():,} examples the accuracy is {accuracy:.4g} % and the mean confidence "
        f"{confidence:.4g} %, {abs(gap):.2g} points {way}confident; the expected calibration error is "
        f"{100 * found.error:.2g} %."
    )
    caption = f"{of}Points below the diagonal: more confident than right."
    return [Paragraph(text), figure(plot.reliability(predictions, targets), caption)]


def predicted(subject: Quantized | IntegerModel, batches: Iterable[Any], draws: int) -> Predicted:
    """Return the probabilities of classes of each output that has any, and the classes.

    A row is an observed target. Probabilities are the mean over networks drawn from a posterior.

    Args:
        subject: a quantized network, or an integer model, whose outputs then are logits.
        batches: `(input, classes)`; targets of several outputs are built like these.
        draws: networks drawn.

    Raises:
        ProbqError: if no target holds classes, the law of the outputs has none or another shape, or there is no batch.
    """
    drawn, said = [], ""
    if isinstance(subject, Quantized):
        drawn = subject.sample(draws, seed=0)
        said = untuned_caution(count_untuned(subject, drawn), draws, "draws", "probq.report(q.at(q.mode()), ...)")
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    left_out = dict[str, None]()
    for batch in batches:
        pair = as_pair(batch)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ProbqError("validation is an iterable of batches (input, classes), such as a DataLoader")
        if isinstance(pair[1], Mapping | tuple):
            raise ProbqError("targets of several outputs are tensors, each with the examples on its first axis")
        several = isinstance(pair[1], Targets)
        y = pair[1] if several else torch.as_tensor(np.asarray(pair[1]))
        if not several and (y.is_floating_point() or y.is_complex()):
            raise ProbqError("calibration needs integer classes as targets; leave out validation")
        for name, (laws, target) in _by_output(_laws(subject, pair[0], y, drawn), y).items():
            if several and not all(isinstance(law, Categorical) for law in laws):
                left_out[name] = None
            else:
                rows.setdefault(name, []).append(_probabilities(laws, target))
    if not rows and left_out:
        raise ProbqError(f"calibration needs classes, and {', '.join(left_out)} have none; leave out validation")
    if not rows:
        raise ProbqError("validation holds no batch; give at least one (input, classes)")
    found = {name: [np.concatenate(part) for part in zip(*parts, strict=True)] for name, parts in rows.items()}
    if list(found) == [""]:
        return Predicted(found[""][0], found[""][1], said, ())
    probabilities, classes = ({name: pair[k] for name, pair in found.items()} for k in (0, 1))
    return Predicted(probabilities, classes, said, tuple(left_out))


def _by_output(laws: list[Distribution], y: Any) -> dict[str, tuple[list[Distribution], Tensor]]:
    """Return the laws and the target of each output, by its place in what the network returns."""
    if not isinstance(laws[0], OutputLaws):
        return {"": (laws, y)}
    given = by_output(laws[0].names, y.of)
    return {
        name.removeprefix("obs."): ([law.laws[name] for law in laws], given[name])  # type: ignore[attr-defined]
        for name in laws[0].laws
    }


def _laws(subject: Quantized | IntegerModel, x: Any, y: Any, drawn: list[Assignment]) -> list[Distribution]:
    """Return the law of the targets under every network."""
    if isinstance(subject, Quantized):
        return [subject.law(output, y) for output in subject.outputs(drawn, x)]
    real = map_leaves(
        lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, subject.real_output(subject(x))
    )
    if isinstance(y, Targets):
        return [for_targets(y.of, real)(real)]
    if len(subject.outputs) > 1:
        raise ProbqError("the model has several outputs; give targets built like them, None where there are none")
    return [for_target(y, real)(real)]


def _probabilities(laws: list[Distribution], y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probabilities `[N, C]` and classes `[N]` of all targets that are observed."""
    if not all(isinstance(law, Categorical) for law in laws):
        raise ProbqError("calibration needs classes, and the likelihood is of another kind; leave out validation")
    y = Observation(laws[0]).shaped(y).to(laws[0].logits.device)  # type: ignore[attr-defined]
    seen = observed(laws[0], y)
    probabilities = torch.stack([law.logits.double().softmax(-1)[seen] for law in laws]).mean(0)  # type: ignore[attr-defined]
    return probabilities.detach().cpu().numpy(), y[seen].cpu().numpy()
