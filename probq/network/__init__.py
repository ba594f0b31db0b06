"""The user's network with unknown widths and codes: traced, given quantizers, made a probabilistic program."""
