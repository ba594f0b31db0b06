"""`probq.report` writes one page for the person who decides on the hardware."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from probq import plot
from probq.decisions.draw_warnings import is_unfitted
from probq.evaluation.reporting import calibration, certificates, integers
from probq.evaluation.reporting.page import Content, Section, figure, page
from probq.evaluation.reporting.posterior import UNFITTED, content, measured
from probq.integer import IntegerModel
from probq.network.quantized.file_format import read
from probq.network.quantized.load import assemble, load
from probq.network.quantized.quantized import Quantized
from probq.training.svi.history import History
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.manifest import file_kind
from probq.utils.version import probq_version

__all__ = ["report"]


def report(
    subject: Quantized | IntegerModel | str | PathLike[str],
    path: str | PathLike[str],
    *,
    net: nn.Module | None = None,
    history: History | None = None,
    predictions: Any = None,
    targets: Any = None,
    validation: Iterable[Any] | None = None,
    draws: int = 16,
    certified: Iterable[str | PathLike[str]] | None = None,
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page: budget, layers, pictures, calibration and certificates of exports.

    Where widths were chosen by an energy, as `probq.post_training` does, it is drawn too.

    The page asks nothing of the network and can be printed; the same input always gives the same bytes.

    Args:
        subject: a posterior or an integer model, or the file of one. Of a model's file, certificates of exports in the
            same folder are found by themselves.
        path: the path of the page; an existing one is replaced.
        net: the network of a posterior's file, as in `probq.load`; without it, its weights are not drawn.
        history: the history of the fit, to be drawn.
        predictions: confidences `[N]` or probabilities of classes `[N, C]`, see `probq.plot.reliability`; of several
            outputs a dictionary of them.
        targets: to confidences whether each was right, to probabilities the classes; likewise.
        validation: instead of predictions, batches `(input, classes)` on which to predict. Targets of several outputs
            are built like these; each output of classes has a sentence and a picture.
        draws: networks drawn from a posterior for that.
        certified: files of certificates, written beside artefacts by `certify` or `probq export --verify`.
        title: the title of the page, by default one with the file's name.

    Returns:
        The path of the page.

    Warns:
        UserWarning: if the posterior was never fitted, or draws that predict have other widths than it was tuned at;
            the page says so too.

    Raises:
        ProbqError: if a file is missing, damaged or of another kind, numbers hold NaN, the budget is out of reach, or
            the page cannot be written.
    """
    model, found = _loaded(subject, net)
    left_out: Sequence[str] = ()
    if (predictions is None) != (targets is None) or (predictions is not None and validation is not None):
        raise ProbqError("calibration takes predictions with targets, or validation batches alone")
    said = _said(model, title, subject)
    if history is not None:
        said.figures.append(figure(plot.history(history), "Loss and expected cost, step for step."))
    if validation is not None:
        predictions, targets, caution, left_out = calibration.predicted(model, validation, draws)
        if caution:
            said.warnings.append(caution)
            warnings.warn(caution, UserWarning, stacklevel=2)
    known = model.sha256() if isinstance(model, IntegerModel) else None
    proofs = found if certified is None else certificates.given(certified, known)
    sections = [
        Section("Layers", said.tables),
        Section("Energy", measured(model) if isinstance(model, Quantized) else ()),
        Section("Pictures", said.figures),
        Section("Calibration", calibration.elements(predictions, targets, left_out) if predictions is not None else ()),
        Section("Exports", certificates.elements(proofs, known is not None)),
    ]
    text = page(said, sections, f"Written by probq {probq_version()}.")
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _loaded(subject: Any, net: nn.Module | None) -> tuple[Quantized | IntegerModel, list[certificates.Certificate]]:
    """Return what the page is about, and the certificates beside its file."""
    if isinstance(subject, Quantized | IntegerModel):
        return subject, []
    if not isinstance(subject, str | PathLike):
        raise ProbqError(f"report takes a posterior, an integer model or a file, not {type(subject).__name__}")
    path = Path(subject)
    if file_kind(path) == "probq.posterior":
        return (load(path, net) if net is not None else assemble(path, *read(path))), []
    model = IntegerModel.load(path)
    return model, certificates.beside(path, model.sha256())


def _said(model: Quantized | IntegerModel, title: str | None, subject: Any) -> Content:
    name = "" if isinstance(subject, Quantized | IntegerModel) else Path(subject).name
    if isinstance(model, IntegerModel):
        return integers.content(model, title or f"Integer model {name}".strip())
    if is_unfitted(model):
        warnings.warn(UNFITTED, UserWarning, stacklevel=3)
    return content(model, title or f"Posterior over the widths of {name or type(model.net).__name__}")
