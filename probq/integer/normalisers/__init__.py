"""Softmax and normalisation have one meaning in integers: tables, an integer root, one division (no torch)."""
