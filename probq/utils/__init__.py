"""Small helpers check arguments, format numbers, write whole files, name versions, draw numbers and batch data."""
