"""Each target has a module that writes an integer model, `write(model, path)`, and runs it, `run(path, integers)`.

`probq.export.verify` runs what was written and counts the inputs for which any integer differs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["c", "hls", "memory", "onnx", "qonnx", "verilog"],
    submod_attrs={"certificate": ["certify"], "verification": ["Report", "verify"]},
)
