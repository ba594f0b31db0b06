"""The network as a Pyro program: called with other weights, with batch normalisation folded into them."""
