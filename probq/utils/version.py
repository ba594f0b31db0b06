"""Which probq this is."""

from importlib.metadata import PackageNotFoundError, version


def probq_version() -> str:
    """Version of the installed probq; "unknown" where it runs from its source without being installed."""
    try:
        return version("probq")
    except PackageNotFoundError:
        return "unknown"
