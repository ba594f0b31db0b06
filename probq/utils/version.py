"""This module knows which probq this is."""

from importlib.metadata import PackageNotFoundError, version


def probq_version() -> str:
    """Return the version of the installed probq, "unknown" where it runs from its source without being installed."""
    try:
        return version("probq")
    except PackageNotFoundError:
        return "unknown"
