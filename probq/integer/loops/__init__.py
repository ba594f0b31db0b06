"""A loop of an integer model has a body of nodes, which is computed once for each time step (no torch)."""
