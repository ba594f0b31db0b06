"""Choices of widths have measured losses, and what these and experts say about them becomes a law."""
