"""Refinement decides which widths to tune for, by a local search on measured loss and short trials of the best."""
