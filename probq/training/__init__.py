"""Training fits a posterior: it searches for widths, refines them, and tunes the network at what was decided."""
