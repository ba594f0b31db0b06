"""The file of an integer model is safetensors with one bit-packed u8 blob per tensor and a JSON manifest.

The metadata key `probq` holds the manifest, `probq.sha256` its hash; the manifest holds the hash of every blob. A
blob's key is `node/tensor`; where the values of a tensor lie on several codebooks, `node/tensor/rung` says which, and
where codes are those of vectors, `node/tensor/table` has these. The hashes find damage, not forgery: everything read is
checked as if a stranger had written it, and memory stays in proportion to the file.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.loops.body import BODIES, every_node
from probq.integer.node import Node
from probq.integer.packing import MOST_ELEMENTS, AnyPacking, Levels, Packing, VectorPacking, pack, unpack, unpack_codes
from probq.integer.packing.entries import Fields, check_fields, describe_levels, read_levels
from probq.integer.packing.vector_entries import FIELDS as VECTORS
from probq.integer.packing.vector_entries import TABLE, describe_vectors, vector_packing
from probq.integer.ports.entries import OPTIONAL
from probq.integer.sizes import check_count
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.manifest import KEY, FileFormat, manifest_text

FORMAT = FileFormat(
    name="probq.integer",
    version=1,
    writer="IntegerModel.save",
    again="save the model again",
    others=(("probq.posterior", "it holds a posterior, not an integer model; load it with probq.load(path, net)"),),
)
HASH_KEY = f"{KEY}.sha256"
MOST_HEADER = 100_000_000  # bytes; safetensors reads no more
FREE_ELEMENTS, PER_BIT = 2**24, 8  # a file may always unpack to so many integers, and to so many more for each bit

_TOP: Fields = MappingProxyType(
    {
        "format": str,
        "version": int,
        "nodes": list,
        "output": (str, dict),
        "output_scale": (float, dict),
        "metadata": dict,
    }
)
_NODE: Fields = MappingProxyType(
    {"name": str, "op": str, "inputs": list, "attributes": dict, "bound": int, "tensors": dict}
)
_TENSOR: Fields = MappingProxyType({"shape": list, "codebooks": list, "rung": object, "sha256": str})
_VECTORS: Fields = MappingProxyType({"shape": list, "vectors": dict, "sha256": str})
_RUNG: Fields = MappingProxyType({"blob": str, "shape": list, "sha256": str})

Tensors = tuple[dict[str, np.ndarray], dict[str, AnyPacking]]


def describe(
    nodes: Iterable[Node], ports: Mapping[str, Any], metadata: dict[str, Any]
) -> tuple[str, dict[str, np.ndarray]]:
    """Return the manifest of a model and the blobs it refers to, by key; equal models give equal text.

    Args:
        nodes: those of the model.
        ports: entries of its inputs and outputs.
        metadata: free information.

    Raises:
        ProbqError: a tensor's value is not a level of its codebook.
    """
    nodes, blobs = tuple(nodes), dict[str, np.ndarray]()
    entries = [_describe_node(node, blobs) for node in nodes]
    elements = sum(tensor.size for node in every_node(nodes) for tensor in node.tensors.values())
    if elements > _allowance(blobs):
        raise ProbqError(f"{elements} integers of so few bits could not be loaded again; remove pruned channels first")
    top = {"format": FORMAT.name, "version": FORMAT.version, "nodes": entries, "metadata": metadata, **ports}
    return manifest_text(top, allow_nan=False), blobs


def _describe_node(node: Node, blobs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a node's entry, and put its blobs to the others."""
    entry = {name: getattr(node, name) for name in ("name", "op", "inputs", "attributes", "bound")}
    entry["tensors"] = {}
    for name, tensor in node.tensors.items():
        try:
            entry["tensors"][name], new = _describe_tensor(tensor, node.packing_of(name), f"{node.name}/{name}")
        except ProbqError as error:
            raise ProbqError(f"node {node.name}, tensor {name}: {error}") from error
        blobs.update(new)
    return entry | ({"body": [_describe_node(inner, blobs) for inner in node.body]} if node.body else {})


def _describe_tensor(values: np.ndarray, packing: AnyPacking, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if isinstance(packing, VectorPacking):
        return describe_vectors(values, packing, key)
    blobs = {key: pack(values, packing)}
    rung: int | dict[str, Any] = 0
    if len(packing.codebooks) > 1 and packing.rung.ndim == 0:
        rung = int(packing.rung)
    elif len(packing.codebooks) > 1:
        blobs[key + "/rung"] = pack(packing.rung, _rung_packing(packing.codebooks))
        rung = {"blob": key + "/rung", "shape": packing.rung.shape, "sha256": _digest(blobs[key + "/rung"])}
    codebooks = [describe_levels(levels) for levels in packing.codebooks]
    return {"shape": values.shape, "codebooks": codebooks, "rung": rung, "sha256": _digest(blobs[key])}, blobs


def _rung_packing(codebooks: tuple[Levels, ...]) -> Packing:
    return Packing((range(len(codebooks)),), np.array(0))


def _digest(blob: np.ndarray) -> str:
    return hashlib.sha256(blob.tobytes()).hexdigest()


def write(path: str | PathLike[str], manifest: str, blobs: Mapping[str, np.ndarray]) -> None:
    """Write the file under a temporary name beside `path`, then move it there.

    Raises:
        ProbqError: the file cannot be written.
    """
    # by hand, because safetensors shuffles the metadata: equal models shall give equal bytes
    metadata = {KEY: manifest, HASH_KEY: hashlib.sha256(manifest.encode()).hexdigest()}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, blob in sorted(blobs.items()):
        header[key] = {"dtype": "U8", "shape": [blob.size], "data_offsets": [end, end + blob.size]}
        end += blob.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ProbqError(f"the manifest takes {len(text)} bytes, more than safetensors reads; shorten the metadata")
    with replace_atomically(path) as temporary, open(temporary, "xb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, *[blobs[key].tobytes() for key in sorted(blobs)]])


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], list[tuple[dict[str, Any], Tensors]]]:
    """Return the manifest without format, version and nodes, and for each node its entry, tensors and their packing.

    The entry of a loop or a switch has the same of each node of its body, in `body`.

    Raises:
        ProbqError: there is no such file, or it is damaged, edited or of another kind.
    """
    with FORMAT.opened(path, "numpy") as file:
        manifest = _manifest(file.metadata() or {})
        blobs = {key: _blob(file, key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        nodes = _nodes(manifest["nodes"], blobs)
    if blobs:
        raise ProbqError(f"{path} holds {min(blobs)!r:.80}, which its manifest does not mention; save the model again")
    return {name: manifest[name] for name in manifest if name not in ("format", "version", "nodes")}, nodes


def _manifest(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the parsed and checked manifest out of a file's metadata."""
    manifest = FORMAT.manifest(metadata, parse_constant=_refuse)
    if hashlib.sha256(metadata[KEY].encode()).hexdigest() != metadata.get(HASH_KEY):
        raise ProbqError("its manifest does not have the recorded SHA-256: it was edited or damaged; save it again")
    check_fields({name: value for name, value in manifest.items() if name not in OPTIONAL}, _TOP, "the manifest")
    return manifest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _allowance(blobs: Mapping[str, np.ndarray]) -> int:
    return FREE_ELEMENTS + PER_BIT * 8 * sum(blob.size for blob in blobs.values())


def _blob(file: Any, key: str) -> np.ndarray:
    part = file.get_slice(key)
    if part.get_dtype() != "U8" or len(part.get_shape()) != 1:
        raise ProbqError(f"{key!r:.80} is not a list of bytes; save the model again")
    return np.asarray(file.get_tensor(key))


def _nodes(entries: list[Any], blobs: dict[str, np.ndarray]) -> list[tuple[dict[str, Any], Tensors]]:
    """Return each node's fields and tensors, and take the blobs in use out of `blobs`."""
    bodies = [entry["body"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("body"), list)]
    check_count(len(entries) + sum(map(len, bodies)))
    found, allowance = [], _allowance(blobs)
    for k, entry in enumerate(entries):
        where = f"node {k} of the manifest"
        body = isinstance(entry, dict) and entry.get("op") in BODIES
        check_fields(entry, {**_NODE, "body": list} if body else _NODE, where)
        one, allowance = _node(entry, where, blobs, allowance)
        if body:
            inner = []
            for j, part in enumerate(entry["body"]):
                check_fields(part, _NODE, f"{where}, node {j} of its body")
                made, allowance = _node(part, f"{where}, node {j} of its body", blobs, allowance)
                inner.append(made)
            entry["body"] = inner
        found.append(one)
    return found


def _node(
    entry: dict[str, Any], where: str, blobs: dict[str, np.ndarray], allowance: int
) -> tuple[tuple[dict[str, Any], Tensors], int]:
    """Return a node's fields and tensors, and how many more elements the file may unpack to."""
    if not all(isinstance(name, str) for name in entry["inputs"]):
        raise ProbqError(f"{where}: inputs must be names")
    arrays: dict[str, np.ndarray] = {}
    packings: dict[str, AnyPacking] = {}
    for name, tensor in entry.pop("tensors").items():
        key = f"{entry['name']}/{name}"
        try:
            read = _vectors if isinstance(tensor, dict) and "vectors" in tensor else _tensor
            arrays[name], packings[name], elements = read(tensor, key, blobs, allowance)
        except ProbqError as error:
            raise ProbqError(f"tensor {key:.80}: {error}") from error
        allowance -= elements
    return (entry, (arrays, packings)), allowance


def _tensor(entry: Any, key: str, blobs: dict[str, np.ndarray], allowance: int) -> tuple[np.ndarray, Packing, int]:
    """Return one tensor, its packing, and its number of elements; those of 0 bits take memory where they are used."""
    check_fields(entry, _TENSOR, "its entry")
    shape = _shape(entry["shape"])
    codebooks = tuple(read_levels(levels) for levels in entry["codebooks"])
    if isinstance(entry["rung"], dict):
        check_fields(entry["rung"], _RUNG, "its rung")
        if entry["rung"]["blob"] != key + "/rung" or len(codebooks) < 2:
            raise ProbqError("its rungs must lie in its own blob and choose between codebooks")
        blob = _take(blobs, key + "/rung", entry["rung"])
        rung = unpack(blob, _shape(entry["rung"]["shape"]), _rung_packing(codebooks))
    else:
        check_fields(entry, {**_TENSOR, "rung": int}, "its entry")
        rung = np.array(entry["rung"])
    packing, blob = Packing(codebooks, rung), _take(blobs, key, entry)
    elements = _within(shape, allowance)
    return unpack(blob, shape, packing), packing, elements


def _vectors(
    entry: dict[str, Any], key: str, blobs: dict[str, np.ndarray], allowance: int
) -> tuple[np.ndarray, VectorPacking, int]:
    """Return what `_tensor` does, of a tensor whose codes are those of vectors."""
    check_fields(entry, _VECTORS, "its entry")
    check_fields(entry["vectors"], VECTORS, "its vectors")
    shape = _shape(entry["shape"])
    packing = vector_packing(entry["vectors"], lambda own: _take(blobs, key + TABLE, own))
    blob, elements = _take(blobs, key, entry), _within(shape, allowance)
    return unpack_codes(blob, shape, packing), packing, elements


def _within(shape: tuple[int, ...], allowance: int) -> int:
    """Return the number of elements of a shape that is in proportion to the file."""
    elements = math.prod(shape)
    if elements > allowance:
        raise ProbqError(f"its shape {list(shape)} is out of proportion to the file; save the model again")
    return elements


def _take(blobs: dict[str, np.ndarray], key: str, entry: Mapping[str, Any]) -> np.ndarray:
    if key not in blobs:
        raise ProbqError(f"the blob {key!r:.80} is missing; save the model again")
    blob = blobs.pop(key)
    if _digest(blob) != entry["sha256"]:
        raise ProbqError(f"the blob {key!r:.80} does not have the recorded SHA-256: it is damaged; save it again")
    return blob


def _shape(shape: list[Any]) -> tuple[int, ...]:
    sane = len(shape) <= 32 and all(type(size) is int and size >= 0 for size in shape)
    if not sane or math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
        raise ProbqError(f"{shape!r:.80} is not a shape of at most 2^31 elements")
    return tuple(shape)
