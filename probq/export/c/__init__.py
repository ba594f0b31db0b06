"""One C99 header that computes an integer model, and its test program."""

from probq.export.c.writer import header, opened, run, write, write_test

__all__ = ["header", "opened", "run", "write", "write_test"]
