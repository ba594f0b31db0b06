"""Which widths to tune for: local search by measured loss, and short trials of the best ones."""
