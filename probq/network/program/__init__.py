"""This room makes the network a Pyro program, called with other weights that batch normalisation is folded into."""
