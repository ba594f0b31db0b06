"""Widths under limits are a discrete problem, which is solved, sampled from, and given chances of its limits here."""
