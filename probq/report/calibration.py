"""Whether the confidence of predictions means what it says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from probq import plot
from probq.assignment import Assignment
from probq.errors import ProbqError
from probq.integer import IntegerModel
from probq.likelihoods import categorical
from probq.quantized import Quantized
from probq.reliability import reliability_of
from probq.report.page import figure, paragraph
from probq.untuned import caution, untuned


def elements(predictions: Any, targets: Any) -> list[str]:
    """A sentence and a picture.

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
    return [paragraph(text), figure(plot.reliability(predictions, targets), caption)]


def predicted(
    subject: Quantized | IntegerModel, batches: Iterable[Any], draws: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Probabilities of classes `[N, C]`, the classes `[N]`, and a sentence of caution, which may be empty.

    Probabilities are the mean over networks drawn from a posterior, and the caution is about draws whose widths were
    not tuned.

    Args:
        subject: a quantized network, or an integer model, whose outputs then are logits.
        batches: `(input, classes)`.
        draws: networks drawn.

    Raises:
        ProbqError: if targets are no classes, outputs no logits `[batch, classes]`, or there is no batch.
    """
    if isinstance(subject, Quantized) and subject.likelihood not in (None, categorical):
        raise ProbqError("calibration needs classes, and the likelihood is of another kind; leave out validation")
    drawn, said = [], ""
    if isinstance(subject, Quantized):
        drawn = subject.sample(draws, seed=0)
        said = caution(untuned(subject, drawn), draws, "draws", "probq.report(q.at(q.mode()), ...)")
    probabilities, classes = [], []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ProbqError("validation is an iterable of batches (input, classes), such as a DataLoader")
        probabilities.append(_probabilities(subject, batch[0], drawn))
        classes.append(np.asarray(batch[1]))
        if probabilities[-1].ndim != 2 or classes[-1].dtype.kind not in "iu":
            raise ProbqError("calibration needs outputs [batch, classes] and integer classes; leave out validation")
    if not classes:
        raise ProbqError("validation holds no batch; give at least one (input, classes)")
    return np.concatenate(probabilities), np.concatenate(classes), said


def _probabilities(subject: Quantized | IntegerModel, x: Any, drawn: list[Assignment]) -> np.ndarray:
    if isinstance(subject, IntegerModel):
        return torch.from_numpy(subject(x) * subject.output_scale).softmax(-1).numpy()
    outputs = subject.outputs(drawn, x)
    if not isinstance(outputs[0], torch.Tensor):
        raise ProbqError("calibration needs a network that returns one tensor, its logits; leave out validation")
    return torch.stack(outputs).double().softmax(-1).mean(0).detach().cpu().numpy()
