"""A file says what it is before it is read."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path


def file_kind(path: Path) -> str | None:
    """Return the format that a file's metadata names, or None."""
    path = checked_path(path)
    if path.is_dir():
        raise ProbqError(f"{path} is a folder; give the path of a file")
    try:
        with safe_open(path, framework="numpy") as file:
            manifest = json.loads((file.metadata() or {}).get("probq", "null"))
    except FileNotFoundError as error:
        raise ProbqError(f"there is no file {path}") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ProbqError(f"{path} is not a safetensors file, or is damaged ({error!s:.80})") from error
    return manifest.get("format") if isinstance(manifest, dict) else None
