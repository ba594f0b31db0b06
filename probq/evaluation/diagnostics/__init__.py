"""Diagnostics say what one posterior holds: its table, draws of widths, predictions, held-out loss, ArviZ's view."""
