"""An integer model becomes QONNX for hls4ml or FINN here."""

from probq.export.qonnx.writer import opened, run, write

__all__ = ["opened", "run", "write"]
