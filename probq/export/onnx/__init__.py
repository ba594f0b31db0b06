"""An integer model becomes ONNX with standard operators here."""

from probq.export.onnx.writer import Written, opened, run, write

__all__ = ["Written", "opened", "run", "write"]
