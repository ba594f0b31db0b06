"""One C99 header computes an integer model; a test program checks it."""

from probq.export.c.writer import header, opened, run, write, write_test

__all__ = ["header", "opened", "run", "write", "write_test"]
