"""A real number becomes a level of a codebook, the nearest one or one by chance, on a scale that hardware has."""
