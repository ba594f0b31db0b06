"""Nested tuples, lists and dictionaries: their leaves, the names of these, and how files hold them."""
