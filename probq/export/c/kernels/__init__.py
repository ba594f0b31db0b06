"""This room writes the C of products: weights in rows, bytes, bit planes."""
