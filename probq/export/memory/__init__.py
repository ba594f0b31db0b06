"""An integer model becomes memory files, thresholds and test vectors for hand-written hardware."""

from probq.export.memory.writer import opened, run, thresholds, vector_inputs, write

__all__ = ["opened", "run", "thresholds", "vector_inputs", "write"]
