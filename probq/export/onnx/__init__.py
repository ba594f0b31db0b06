"""An integer model as ONNX with standard operators."""

from probq.export.onnx.writer import Written, opened, run, write

__all__ = ["Written", "opened", "run", "write"]
