"""C text of values, expressions and loops."""
