"""Widths under limits as a discrete problem: its most probable choice, exact draws, and chances that a limit holds."""
