"""The command line has the commands `probq demo`, `show`, `report`, `export` and `verify`."""

from probq.cli.command_line import main

__all__ = ["main"]
