"""probq: how many bits does each tensor of a trained network need, and how sure are we?"""

import lazy_loader

from probq.versions import probq_version

__version__ = probq_version()
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["codebooks", "cost", "export", "likelihoods", "plot", "rules"],
    submod_attrs={
        "assignment": ["Assignment"],
        "budget": ["Budget"],
        "decide": ["decide"],
        "effective": ["effective_bops"],
        "errors": ["ProbqError"],
        "fit": ["fit", "steps"],
        "history": ["History", "Step"],
        "integer": ["IntegerModel"],
        "layers": ["Layer", "layers"],
        "loop": ["Rates"],
        "lower": ["lower"],
        "pareto": ["Pareto", "pareto"],
        "plan": ["Plan", "uniform"],
        "posterior": ["load"],
        "quantized": ["Quantized", "quantize"],
        "report": ["report"],
        "summary": ["table", "to_arviz"],
    },
)
