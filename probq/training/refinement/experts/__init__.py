"""Experts know widths from other sides than the losses that a refinement measures."""
