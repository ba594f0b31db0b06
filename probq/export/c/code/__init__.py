"""This room writes the C of values, expressions and loops."""
