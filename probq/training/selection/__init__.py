"""Widths depend on the input: a selector chooses one of several decided networks for each example."""
