"""Functions and modules of torch that multiply tensors inside are found here, and spelled out."""
