"""Functions and modules of torch that multiply tensors inside are spelled out here."""
