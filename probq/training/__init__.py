"""Fitting a posterior: the search for widths, their refinement, and the tuning of what was decided."""
