"""Products of two tensors that a network computes become integers here."""
