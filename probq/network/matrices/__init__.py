"""Matrices that a network's forward multiplies with, as layers."""
