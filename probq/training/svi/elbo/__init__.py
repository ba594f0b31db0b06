"""This room computes the negative evidence lower bound (ELBO) of a step for all quantizers at once."""
