"""A switch of an integer model has branches of nodes, of which one is computed for each example (no torch)."""
