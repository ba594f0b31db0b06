"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from probq.errors import ProbqError


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of `path`, with its suffix; what was written there is moved to `path` at the end.

    Raises:
        ProbqError: if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise ProbqError(f"cannot write {path}: {error}; name a file in a folder that exists") from error
    finally:
        temporary.unlink(missing_ok=True)
