"""probq: how many bits does each tensor of a trained network need, and how sure are we?"""

import lazy_loader

from probq.versions import probq_version

__version__ = probq_version()
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "calibration",
        "codebooks",
        "cost",
        "estimators",
        "export",
        "likelihoods",
        "plot",
        "priors",
        "regression",
        "rules",
        "uncertainty",
    ],
    submod_attrs={
        "assignment": ["Assignment"],
        "budget": ["Budget"],
        "convergence": ["convergence", "restarts"],
        "decide": ["decide"],
        "effective": ["effective_bops"],
        "ensembles": ["ensemble"],
        "errors": ["ProbqError"],
        "fit": ["fit", "steps"],
        "history": ["History", "Step"],
        "inference_data": ["to_arviz"],
        "integer": ["IntegerModel"],
        "integer.ensemble": ["Ensemble"],
        "leave_one_out": ["leave_one_out"],
        "lower": ["lower"],
        "pareto": ["Pareto", "pareto"],
        "plan": ["Plan", "uniform"],
        "posterior": ["load"],
        "quantized": ["Quantized", "quantize"],
        "rates": ["Rates"],
        "report": ["report"],
        "summary": ["table"],
        "temperature": ["Tuned", "tune_temperature"],
        "tracing.layer": ["Layer"],
        "tracing.trace": ["layers"],
    },
)
