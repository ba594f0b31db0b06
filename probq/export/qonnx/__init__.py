"""An integer model as QONNX, for hls4ml or FINN."""

from probq.export.qonnx.writer import opened, run, write

__all__ = ["opened", "run", "write"]
