"""An integer model as an hls4ml project."""

from probq.export.hls.writer import opened, run, write

__all__ = ["opened", "run", "write"]
