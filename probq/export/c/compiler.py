"""A C compiler is found on this machine, and builds programs in a temporary folder."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from probq.utils.errors import ProbqError

COMPILERS = ("cc", "gcc", "clang")
SECONDS = 600


def compiler() -> str:
    """Return the path of the first C compiler there is.

    Raises:
        ProbqError: there is none.
    """
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise ProbqError(f"no C compiler found: none of {', '.join(COMPILERS)} is on the PATH; install gcc or clang")


def build(source: Path, program: Path, flags: Sequence[str]) -> None:
    """Compile one C file as C99.

    Raises:
        ProbqError: there is no compiler, it refuses the file, or takes too long.
    """
    command = [compiler(), "-std=c99", *flags, str(source), "-o", str(program)]
    done = _finished(command, b"")
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()[:1000]
        raise ProbqError(f"{command[0]} cannot compile {source.name}: {message}")


def execute(program: Path, data: bytes) -> bytes:
    """Return what a program writes when it reads the data.

    Raises:
        ProbqError: it fails or takes too long.
    """
    done = _finished([str(program)], data)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()[:1000]
        raise ProbqError(f"the compiled program failed with code {done.returncode}: {message}")
    return done.stdout


def _finished(command: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProbqError(f"{Path(command[0]).name} took more than {SECONDS} seconds; give it fewer inputs") from error
