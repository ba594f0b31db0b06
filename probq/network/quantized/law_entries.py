"""A posterior's file names its estimators and priors as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probq import estimators, priors
from probq.network.quantizers.base import Quantizer
from probq.network.quantizers.plan import Plan
from probq.network.quantizers.weight import WeightQuantizer
from probq.utils.errors import ProbqError

ESTIMATORS = (
    ("mean gradient", estimators.MeanGradient),
    ("mode forward", estimators.ModeForward),
    ("gumbel", estimators.Gumbel),
    ("second order", estimators.SecondOrder),
    ("straight through", estimators.StraightThrough),
    ("local reparametrization", estimators.LocalReparametrization),
    ("flipout", estimators.Flipout),
)


def laws_to_entry(quantizer: Quantizer) -> dict[str, Any]:
    """Return the estimator, unless it is the mean gradient, priors, unless they are uniform, and the first spread.

    An estimator of null is the default.

    Raises:
        ProbqError: if the user wrote one of them.
    """
    entry: dict[str, Any] = {}
    chosen = quantizer.chosen_estimator
    if chosen is None:
        entry["estimator"] = None
    elif chosen != estimators.MeanGradient():
        names = [name for name, kind in ESTIMATORS if type(chosen) is kind]
        if not names:
            raise ProbqError(
                f"a file cannot hold an estimator of one's own ({type(chosen).__name__}); use those of probq.estimators"
            )
        entry["estimator"] = {"kind": names[0], **vars(chosen)}
    if quantizer.width_prior is not None:
        entry["width_prior"] = priors.to_entry(quantizer.width_prior)
    if isinstance(quantizer, WeightQuantizer):
        if quantizer.free_codes:
            entry["free_codes"] = True
        if quantizer.first_spread != Plan().spread:
            entry["spread"] = quantizer.first_spread
        if quantizer.code_prior_law is not None:
            entry["code_prior"] = priors.to_entry(quantizer.code_prior_law)
    return entry


def laws_from_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same as arguments of a `Plan`.

    Raises:
        LookupError: if there is no such kind.
    """
    laws: dict[str, Any] = {key: priors.from_entry(entry[key]) for key in ("width_prior", "code_prior") if key in entry}
    own = entry.get("estimator", {"kind": "mean gradient"})
    fields = {key: value for key, value in (own or {}).items() if key != "kind"}
    laws["estimator"] = None if own is None else dict(ESTIMATORS)[own["kind"]](**fields)
    if "spread" in entry:
        laws["spread"] = float(entry["spread"])
    if entry.get("free_codes"):
        laws["free_codes"] = True
    return laws
