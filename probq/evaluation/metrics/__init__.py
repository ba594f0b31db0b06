"""Metrics score predictions against what happened, with numpy and SciPy alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["calibration", "regression", "uncertainty"])
