"""Files of models whose inputs may have any length on one axis."""
