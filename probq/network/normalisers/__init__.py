"""Softmax and normalisation: their calls are read here, and computed as integers compute them."""
