"""Files of probq are safetensors files whose metadata key `probq` holds a manifest, in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path

KEY = "probq"


@dataclass(frozen=True)
class FileFormat:
    """A kind of file has a name and a version in its manifest, and messages that tell users how to come by one.

    Attributes:
        name: what the manifest must have as `format`.
        version: the only version that is read.
        writer: the method that writes such files.
        again: what to do about a damaged file, an imperative.
        others: names of other kinds, each with what to say about a file of it.
    """

    name: str
    version: int
    writer: str
    again: str
    others: tuple[tuple[str, str], ...] = ()

    @contextmanager
    def opened(self, path: str | PathLike[str], framework: str) -> Iterator[Any]:
        """Open a file for a `with` statement, in which whatever is wrong with the file gets a sentence.

        Args:
            path: the path of the file.
            framework: whose tensors are read, "pt" or "numpy".

        Raises:
            ProbqError: there is no such file, it is no safetensors file, or it was refused while it was read.
        """
        path = checked_path(path)
        if path.is_dir():
            raise ProbqError(f"{path} is a folder; give the path of a file that {self.writer} wrote")
        try:
            if framework == "pt":
                yield WholeFile(path.read_bytes())
                return
            with safe_open(path, framework=framework) as file:
                yield file
        except FileNotFoundError as error:
            raise ProbqError(f"there is no file {path}; give the path that {self.writer} wrote") from error
        except (OSError, SafetensorError) as error:
            raise ProbqError(f"{path} is not a safetensors file, or is damaged ({error}); {self.again}") from error
        except ProbqError as error:
            raise ProbqError(f"{path} cannot be loaded: {error}") from error

    def manifest(
        self, metadata: Mapping[str, str], parse_constant: Callable[[str], Any] | None = None
    ) -> dict[str, Any]:
        """Return the parsed manifest out of a file's metadata.

        Args:
            metadata: what safetensors keeps beside the tensors.
            parse_constant: what to do with NaN and infinities, as in `json.loads`.

        Raises:
            ProbqError: there is none, or it is of another kind or version.
        """
        if KEY not in metadata:
            raise ProbqError(f"it is a safetensors file, but probq did not write it; give one that {self.writer} wrote")
        try:
            manifest = json.loads(metadata[KEY], parse_constant=parse_constant)
        except (ValueError, RecursionError) as error:
            raise ProbqError(f"its manifest is not JSON ({error!s:.80}); {self.again}") from error
        kind = manifest.get("format") if isinstance(manifest, dict) else None
        for name, said in self.others:
            if kind == name:
                raise ProbqError(said)
        if kind != self.name:
            raise ProbqError(f"its format is {kind!r:.80}, not {self.name!r}; give a file that {self.writer} wrote")
        if (found := manifest.get("version")) != self.version:
            raise ProbqError(f"its version is {found!r:.80}, this probq reads {self.version}; update probq")
        return dict(manifest)


class WholeFile:
    """This file was read at once: `safe_open` opens a path twice for torch, which another writer may replace between.

    Args:
        data: its bytes.

    Raises:
        SafetensorError: if it is no safetensors file.
    """

    def __init__(self, data: bytes) -> None:
        from safetensors.torch import load

        self._tensors = load(data)
        self._header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])

    def metadata(self) -> dict[str, str] | None:
        """Return what the file keeps beside its tensors."""
        found: dict[str, str] | None = self._header.get("__metadata__")
        return found

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return sorted(self._tensors)

    def get_tensor(self, name: str) -> Any:
        """Return a tensor."""
        return self._tensors[name]


def manifest_text(manifest: Mapping[str, Any], allow_nan: bool = True) -> str:
    """Return a manifest as JSON; equal ones give equal text.

    Raises:
        ValueError: a number is not finite, where that is not allowed.
    """
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=allow_nan)


def file_kind(path: Path) -> str | None:
    """Return the format that a file's manifest names, or None."""
    path = checked_path(path)
    if path.is_dir():
        raise ProbqError(f"{path} is a folder; give the path of a file")
    try:
        with safe_open(path, framework="numpy") as file:
            manifest = json.loads((file.metadata() or {}).get(KEY, "null"))
    except FileNotFoundError as error:
        raise ProbqError(f"there is no file {path}") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ProbqError(f"{path} is not a safetensors file, or is damaged ({error!s:.80})") from error
    return manifest.get("format") if isinstance(manifest, dict) else None
