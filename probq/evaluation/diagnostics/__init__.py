"""What one posterior says: its table, draws of widths, predictions, loss on held-out data, and ArviZ's view of it."""
