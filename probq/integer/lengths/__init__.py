"""Models whose inputs may have any length on one axis (no torch)."""
