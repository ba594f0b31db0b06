"""What takes passes over data but no training: scales of inputs, statistics of batch normalisation."""
