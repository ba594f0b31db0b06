"""Training fits a posterior: it searches for widths, refines them, and tunes the network at what was decided."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["communication", "distillation", "lightning", "ptq", "weight_updates"]
)
