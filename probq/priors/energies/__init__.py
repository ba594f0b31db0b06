"""Energies say what each choice of widths adds to the loss; `exp(-energy)` is a prior over widths."""
