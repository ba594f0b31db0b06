"""How a real number becomes a level of a codebook: to the nearest one, or by chance, on a scale that hardware has."""
