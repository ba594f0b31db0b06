"""Channels of a float network: which modules hold the same ones, and how their number changes."""
