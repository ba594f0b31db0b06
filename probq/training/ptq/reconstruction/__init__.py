"""Units of layers whose rounding is learned together: which they are, how they run alone, and soft codes."""
