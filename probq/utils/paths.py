"""Paths that a user gives are checked here."""

import errno
from os import PathLike
from pathlib import Path

from probq.utils.errors import ProbqError

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what a reader or writer says better


def checked_path(path: str | PathLike[str]) -> Path:
    """Return the path itself, which may lead to nothing yet.

    Raises:
        ProbqError: it is no path, or the system takes no such name or does not let it be reached.
    """
    try:
        found = Path(path)
        found.stat()
    except TypeError as error:
        raise ProbqError(f"a path is a string or a pathlib.Path, not {type(path).__name__}") from error
    except OSError as error:
        if error.errno not in ABSENT:
            raise ProbqError(f"{path} cannot be reached ({reason(error)}); name another path") from error
    except ValueError as error:  # half of a character, or a null character
        raise ProbqError(f"{path} cannot be the name of a file ({error}); name another path") from error
    return found


def target_path(path: str | PathLike[str]) -> Path:
    """Return the path of a file or folder that is to be written.

    Raises:
        ProbqError: as `checked_path`, or it has no name of its own, as the empty path and a drive's root.
    """
    found = checked_path(path)
    if not found.name:
        raise ProbqError(f"{str(path)!r} names no file or folder to be written; add a name")
    return found


def reason(error: OSError) -> str:
    """Return what the system says, without the paths: a temporary one would only puzzle."""
    return error.strerror or str(error)
