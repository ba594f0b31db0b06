"""An integer model on other runtimes: a module per target, each with `write(model, path)` and `run(path, integers)`.

`probq.export.verify` runs what was written and counts the inputs for which any integer differs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["c", "hls", "memory", "onnx", "qonnx", "verilog"],
    submod_attrs={"certificate": ["certify"], "verification": ["Report", "verify"]},
)
