"""An integer model as da4ml's Verilog."""

from probq.export.verilog.writer import opened, run, write

__all__ = ["opened", "run", "write"]
