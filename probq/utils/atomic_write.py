"""Files appear whole or not at all."""

import contextlib
import errno
import os
import platform
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from probq.utils.errors import ProbqError
from probq.utils.paths import reason, target_path


@contextmanager
def replace_atomically(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`, with its suffix, within the context.

    What was written there is moved to `path` at the end.

    Raises:
        ProbqError: if the file cannot be written.
    """
    path = target_path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())  # before the name: a loss of power must not leave it on half a file
        os.replace(temporary, path)
        _keep_names(path.parent)
    except OSError as error:
        raise ProbqError(f"cannot write {path}: {reason(error)}; {_advice(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # nothing was written where even this fails, as below a file
            temporary.unlink()


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk, or name a file elsewhere"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "name a file in a folder that may be written to"
    return "name a file in a folder that exists"


def _keep_names(folder: Path) -> None:
    """Wait until the names in a folder would survive a loss of power, where the system can tell."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def temporary_name(path: Path) -> Path:
    """Return a new hidden name beside `path`.

    What killed processes of this machine left there for it is removed first.
    """
    machine = f"{zlib.crc32(platform.node().encode()):08x}"
    for old in _named(path.parent, machine, path.name):
        with contextlib.suppress(OSError):
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    return path.with_name(f".probq-{machine}-{os.getpid()}-{secrets.token_hex(4)}.{path.name}")


def _named(folder: Path, machine: str, name: str) -> Iterator[Path]:
    """Return the temporary files and folders for `name` whose process is gone."""
    start = f".probq-{machine}-"
    with contextlib.suppress(OSError):
        for file in list(folder.iterdir()):
            head, _, tail = file.name.removeprefix(start).partition(".")
            process = head.partition("-")[0]
            if file.name.startswith(start) and tail == name and process.isdecimal() and not _runs(int(process)):
                yield file


def _runs(process: int) -> bool:
    """Return whether there is such a process; where that cannot be asked, it is taken to run."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
