"""A Lightning `Trainer` fits a network here, with its loggers, callbacks, progress bars and loaders as they are.

It needs the extra "distributed". `probq.fit` does more: both phases in one call, measured decisions, trials, and
checkpoints that go on to the same bits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"quantization": ["Quantization"]})
