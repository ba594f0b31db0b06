"""An integer model becomes da4ml's Verilog here."""

from probq.export.verilog.writer import opened, run, write

__all__ = ["opened", "run", "write"]
