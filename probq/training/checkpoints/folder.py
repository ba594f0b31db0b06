"""A folder of checkpoints has numbered files, of which the last two are kept; each appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from probq.network.quantized.file_format import digest
from probq.utils.arguments import check_number
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.manifest import KEY, FileFormat, manifest_text
from probq.utils.paths import reason, target_path

FORMAT = FileFormat(
    name="probq.checkpoint",
    version=1,
    writer="probq.fit(checkpoint=FOLDER)",
    again="remove it",
    others=(("probq.posterior", "it holds a posterior; load it with probq.load(path, net)"),),
)
NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")
SUFFIX = re.compile(r"\.[A-Za-z]\w*")  # not the digits of a number that a name ends in
KEPT = 2
PATIENCE = 10.0  # seconds, in which the workers of a loader notice that their process was killed


def checkpoint_folder(path: Any, every: int | None) -> CheckpointFolder | None:
    """Return the folder that a path names, or None where it names a file: it has a suffix, and is no folder.

    Raises:
        ProbqError: if it is no path, or cannot be made a folder and written to; or if `every` is no number of steps, or
            there is no folder.
    """
    named = None if path is None else target_path(path)
    if named is None or (SUFFIX.fullmatch(named.suffix) and not named.is_dir()):
        if every is not None:
            raise ProbqError("every is for a folder of checkpoints; give checkpoint a path without a suffix")
        return None
    if every is not None:
        check_number("every", every, 1)
    return CheckpointFolder(named)


class DamagedCheckpoint(ProbqError):
    """A file of a checkpoint cannot be read as a whole."""


class CheckpointFolder:
    """A checkpoint folder is written by one fit, and read by the same call made again.

    Args:
        path: the path of the folder, which is made if it is not there.

    Raises:
        ProbqError: if it cannot be made or written to.
    """

    def __init__(self, path: Any) -> None:
        self.path = target_path(path)
        self._lock: int | None = None
        self._make()
        with replace_atomically(self.path / ".writable") as temporary:
            temporary.touch()
        with contextlib.suppress(OSError):
            (self.path / ".writable").unlink()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProbqError(
                f"checkpoint names {self.path}, which cannot be made a folder ({reason(error)}); name another, or a "
                "file with a suffix, such as posterior.safetensors, for the posterior alone"
            ) from error

    def lock(self) -> None:
        """Keep other fits out until `unlock`, or until this process ends in whatever way.

        Raises:
            ProbqError: if another fit has been writing to the folder for all of `PATIENCE` seconds.
        """
        try:
            import fcntl
        except ImportError:  # as on Windows
            return
        self._make()
        place, end = os.open(self.path, os.O_RDONLY), time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.1)
                    continue
                os.close(place)
                raise ProbqError(
                    f"another fit is writing to {self.path}; wait until it ends, or give another folder as checkpoint"
                ) from None
            except OSError:  # a file system without locks
                os.close(place)
                return
            self._lock = place
            return

    def unlock(self) -> None:
        """Let other fits in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def files(self) -> list[Path]:
        """Return the checkpoints that are there, the newest first."""
        inside = self.path.iterdir() if self.path.is_dir() else ()
        found = [(int(m[1]), file) for file in inside if (m := NAME.fullmatch(file.name))]
        return [file for _, file in sorted(found, reverse=True)]

    def write(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint, then remove all but the last two.

        Args:
            content: what JSON can hold.
            tensors: on the CPU, no two of them in the same memory.

        Raises:
            ProbqError: if it cannot be written; those before stay.
        """
        self._make()  # whoever removed it meant what was in it
        before = self.files()
        number = int(NAME.fullmatch(before[0].name)[1]) + 1 if before else 1  # type: ignore[index]
        manifest: dict[str, Any] = {"format": FORMAT.name, "version": FORMAT.version, **content}
        manifest["sha256"] = digest(manifest, tensors)
        path = self.path / f"checkpoint-{number:06}.safetensors"
        data = safetensors.torch.save(dict(tensors), {KEY: manifest_text(manifest)})
        with replace_atomically(path) as temporary:
            temporary.write_bytes(data)
        for old in before[KEPT - 1 :]:
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def newest(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return manifest and tensors of the newest checkpoint that is whole, or None if there is none.

        Warns:
            UserWarning: where a newer one is damaged.

        Raises:
            ProbqError: if the newest one is of another version, or all of them are damaged.
        """
        files = self.files()
        for file in files:
            try:
                return read(file)
            except DamagedCheckpoint as error:
                if file == files[-1]:
                    raise ProbqError(
                        f"no checkpoint in {self.path} can be read: {error}; remove this folder to begin anew, or give "
                        "another one"
                    ) from error
                warnings.warn(f"{error}; the fit goes on from the checkpoint before it", UserWarning, stacklevel=6)
        return None


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return manifest and tensors of a checkpoint.

    Raises:
        DamagedCheckpoint: if it is not whole.
        ProbqError: if it is of another kind or version.
    """
    try:
        with FORMAT.opened(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except ProbqError as error:
        raise DamagedCheckpoint(str(error)) from error
    try:
        manifest = FORMAT.manifest(metadata)
    except ProbqError as error:
        if f'"format":"{FORMAT.name}"' in metadata.get(KEY, "") and "version" in str(error):
            raise ProbqError(f"{path} cannot be read: {error}, or give another folder as checkpoint") from error
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
    if digest({k: v for k, v in manifest.items() if k != "sha256"}, tensors) != manifest.get("sha256"):
        raise DamagedCheckpoint(f"{path} does not have the recorded SHA-256: it was edited or damaged")
    return manifest, tensors
