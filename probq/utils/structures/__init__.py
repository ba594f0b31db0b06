"""Nested tuples, lists and dictionaries hold what networks take and return; here are their leaves and tensors."""
