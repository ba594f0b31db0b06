"""`Quantized` is what users hold: the program with its decisions, and its file."""
