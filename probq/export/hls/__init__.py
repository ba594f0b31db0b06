"""An integer model becomes an hls4ml project here."""

from probq.export.hls.writer import opened, run, write

__all__ = ["opened", "run", "write"]
