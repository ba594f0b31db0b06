"""What a network computes is seen here: one run of it on an example, and the layers found on the way."""
