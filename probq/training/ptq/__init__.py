"""This room makes passes over data without training, for scales of inputs and statistics of batch normalisation."""
