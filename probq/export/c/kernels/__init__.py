"""C text of products: weights in rows, bytes, bit planes."""
