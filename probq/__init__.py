"""probq answers how many bits each tensor of a trained network needs, and how sure that is."""

import lazy_loader

from probq.utils.version import probq_version

__version__ = probq_version()
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "codebooks",
        "cost",
        "criteria",
        "estimators",
        "export",
        "likelihoods",
        "nn",
        "plot",
        "priors",
        "rules",
    ],
    submod_attrs={
        "cost.budget": ["Budget"],
        "training.refinement.allocate": ["allocate"],
        "priors.energies.energy": ["Energy"],
        "decisions.assignment": ["Assignment"],
        "decisions.width_field": ["WidthField"],
        "decisions.effective_bops": ["effective_bops"],
        "evaluation.diagnostics.inference_data": ["to_arviz"],
        "evaluation.diagnostics.table": ["table"],
        "evaluation.metrics": ["calibration", "regression", "uncertainty"],
        "evaluation.reporting": ["report"],
        "evaluation.studies.ensemble": ["ensemble"],
        "evaluation.studies.pareto": ["Pareto", "pareto"],
        "evaluation.studies.restarts": ["convergence", "restarts"],
        "evaluation.studies.temperature": ["Tuned", "tune_temperature"],
        "integer": ["IntegerModel"],
        "integer.ensemble": ["Ensemble"],
        "integer.lowering.lower": ["lower"],
        "training.svi.elbo.leave_one_out": ["leave_one_out"],
        "network.quantized.load": ["load"],
        "network.quantized.quantized": ["Quantized"],
        "network.explicit_copy": ["explicit"],
        "network.quantize": ["quantize"],
        "network.quantizers.plan": ["Plan", "uniform"],
        "network.tracing.layer": ["Layer"],
        "network.tracing.trace": ["layers"],
        "training": ["communication", "distillation", "lightning", "ptq"],
        "training.fit": ["fit"],
        "training.fit_options": ["FitOptions"],
        "training.fit_steps": ["steps"],
        "training.step_memory": ["StepMemory", "step_memory"],
        "training.post_training": ["post_training"],
        "training.refinement.decide": ["decide"],
        "training.svi.history": ["History", "Step"],
        "training.svi.learning_rates": ["Rates"],
        "utils.errors": ["ProbqError"],
    },
)
