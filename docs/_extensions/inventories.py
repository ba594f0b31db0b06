"""Inventories for intersphinx, made from a list of the names that the manual links to."""

import zlib
from pathlib import Path

HEAD = """# Sphinx inventory version 2
# Project: {name}
# Version:
# The remainder of this file is compressed using zlib.
"""


def mapping(listed: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """What `intersphinx_mapping` takes: for each library its address, and the inventory made here.

    Args:
        listed: file with a line `[library] address`, then lines `name role page` for each name of that library.
        folder: where the inventories are written.
    """
    libraries: dict[str, tuple[str, list[str]]] = {}
    for line in listed.read_text().splitlines():
        if line.startswith("["):
            name, address = line[1:].split("] ")
            libraries[name] = (address, [])
        elif line and not line.startswith("#"):
            item, role, page = line.split()
            libraries[name][1].append(f"{item} {role} 1 {page} -")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, lines) in libraries.items():
        body = zlib.compress("".join(f"{line}\n" for line in lines).encode())
        (folder / f"{name}.inv").write_bytes(HEAD.format(name=name).encode() + body)
    return {name: (address, str(folder / f"{name}.inv")) for name, (address, _) in libraries.items()}
