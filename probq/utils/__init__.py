"""Small helpers: checks of arguments, numbers as text, whole files, versions, random streams, batches of data."""
