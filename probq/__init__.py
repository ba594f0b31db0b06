"""probq: how many bits does each tensor of a trained network need, and how sure are we?"""

import lazy_loader

from probq.versions import probq_version

__version__ = probq_version()
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["codebooks", "cost", "estimators", "export", "likelihoods", "plot", "priors"],
    submod_attrs={
        "assignment": ["Assignment"],
        "budget": ["Budget"],
        "errors": ["ProbqError"],
        "fit": ["fit", "steps"],
        "history": ["History", "Step"],
        "integer": ["IntegerModel"],
        "layers": ["Layer", "layers"],
        "loop": ["Rates"],
        "lower": ["lower"],
        "plan": ["Plan"],
        "posterior": ["load"],
        "quantized": ["Quantized", "quantize"],
        "summary": ["table", "to_arviz"],
    },
)
