"""Recurrences become loops of integers here: one body, whatever the number of time steps."""
