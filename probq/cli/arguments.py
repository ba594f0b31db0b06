"""Numbers on the command line must be in these ranges."""

import argparse

MOST_SEED, MOST_INPUTS = 2**63 - 1, 10**9


def seed(text: str) -> int:
    """Return a seed from 0 to 2^63 - 1."""
    return _between(text, 0, MOST_SEED, "a seed is an integer from 0 to 2^63 - 1")


def count(text: str) -> int:
    """Return a number of inputs from 1 to 10^9."""
    return _between(text, 1, MOST_INPUTS, "give an integer from 1 to 10^9")


def _between(text: str, least: int, most: int, message: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(message)
    return number
