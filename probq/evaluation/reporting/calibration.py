"""This part of the page says whether the confidence of predictions means what it claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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
from probq.likelihoods import for_target
from probq.likelihoods.classes import observed
from probq.network.distributions.observation import Observation
from probq.network.quantized.quantized import Quantized
from probq.utils.errors import ProbqError


def elements(predictions: Any, targets: Any) -> list[Element]:
    """Return a sentence and a picture on calibration.

    Raises:
        ProbqError: as `reliability_of`.
    """
    found = reliability_of(predictions, targets)
    accuracy, confidence = (100 * value for value in found.means)
    gap = confidence - accuracy
    way = "over" if gap > 0 else "under"
    text = (
        f"On {found.counts.sum():,} examples the accuracy is {accuracy:.4g} % and the mean confidence {confidence:.4g} "
        f"%, {abs(gap):.2g} points {way}confident; the expected calibration error is {100 * found.error:.2g} %."
    )
    caption = "Points below the diagonal: more confident than right."
    return [Paragraph(text), figure(plot.reliability(predictions, targets), caption)]


def predicted(
    subject: Quantized | IntegerModel, batches: Iterable[Any], draws: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the probabilities of classes `[N, C]`, the classes `[N]`, and a sentence of caution, which may be empty.

    A row is an observed target. Probabilities are the mean over networks drawn from a posterior, and the caution is
    about draws whose widths were not tuned.

    Args:
        subject: a quantized network, or an integer model, whose outputs then are logits.
        batches: `(input, classes)`.
        draws: networks drawn.

    Raises:
        ProbqError: if targets are no classes, the law of the outputs has none or another shape, or there is no batch.
    """
    drawn, said = [], ""
    if isinstance(subject, Quantized):
        drawn = subject.sample(draws, seed=0)
        said = untuned_caution(count_untuned(subject, drawn), draws, "draws", "probq.report(q.at(q.mode()), ...)")
    probabilities, classes = [], []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ProbqError("validation is an iterable of batches (input, classes), such as a DataLoader")
        if isinstance(batch[1], Mapping | tuple):
            raise ProbqError(
                "calibration needs one output of classes, and these are targets of several; give those of one: "
                "predictions=q.predict(x)['kind'], targets=y['kind']"
            )
        y = torch.as_tensor(np.asarray(batch[1]))
        if y.is_floating_point() or y.is_complex():
            raise ProbqError("calibration needs integer classes as targets; leave out validation")
        of_batch, seen = _probabilities(_laws(subject, batch[0], y, drawn), y)
        probabilities.append(of_batch)
        classes.append(seen)
    if not classes:
        raise ProbqError("validation holds no batch; give at least one (input, classes)")
    return np.concatenate(probabilities), np.concatenate(classes), said


def _laws(subject: Quantized | IntegerModel, x: Any, y: Tensor, drawn: list[Assignment]) -> list[Distribution]:
    """Return the law of the targets under every network."""
    if isinstance(subject, IntegerModel):
        if len(subject.outputs) > 1:
            raise ProbqError(
                "calibration needs one output of classes, and this model has several; leave out validation"
            )
        logits = torch.from_numpy(subject(x) * subject.outputs[0].scale)
        return [for_target(y, logits)(logits)]
    return [subject.law(output, y) for output in subject.outputs(drawn, x)]


def _probabilities(laws: list[Distribution], y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probabilities `[N, C]` and classes `[N]` of all targets that are observed."""
    if not all(isinstance(law, Categorical) for law in laws):
        raise ProbqError("calibration needs classes, and the likelihood is of another kind; leave out validation")
    y = Observation(laws[0]).shaped(y).to(laws[0].logits.device)  # type: ignore[attr-defined]
    seen = observed(laws[0], y)
    probabilities = torch.stack([law.logits.double().softmax(-1)[seen] for law in laws]).mean(0)  # type: ignore[attr-defined]
    return probabilities.detach().cpu().numpy(), y[seen].cpu().numpy()
