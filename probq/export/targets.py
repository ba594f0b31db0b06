"""The list of targets is what the command line offers, `verify` recognises, and a certificate names libraries of.

A new target is a folder of `probq.export` with `write`, `run` and `opened`, and a line of `TARGETS`.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from probq.export.common.artifact_folder import target_of
from probq.integer import IntegerModel
from probq.utils.errors import ProbqError, sentence
from probq.utils.optional_import import require

Computation = Callable[[Any], Any]  # integers of inputs to integers of outputs, the batch first


@dataclass(frozen=True)
class Target:
    """A target is one form that an integer model can be written in.

    Args:
        name: as the user types it.
        module: the module of `probq.export`; a `Report` and the index of a folder say it too.
        ending: what replaces the ending of the model's file name; the artefact is a folder where it has no suffix.
        text: what is written, for the help.
        options: the options of the module's `write`.
        packs: whether its `write` takes `packed`.
        named: whether its `write` takes a name for what the artefact defines; in C it is that of the file.
        domains: how those of a graph's nodes may begin, which tells apart targets that write ONNX.
        libraries: those whose versions a certificate records.
    """

    name: str
    module: str
    ending: str
    text: str
    options: tuple[tuple[str, Any], ...] = ()
    packs: bool = False
    named: bool = False
    domains: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Return the suffix of its files, empty where it writes folders."""
        return PurePath(f"model{self.ending}").suffix

    def path(self, model: Path, folder: Path, packed: bool) -> Path:
        """Return where the artefact of a model's file goes."""
        return folder / f"{model.stem}{'_packed' if packed else ''}{self.ending}"

    def write(self, model: IntegerModel, path: Path, packed: bool, name: str | None = None) -> Any:
        """Write the artefact and return what the writer says about it, if anything.

        Raises:
            ProbqError: as the module's `write`; or `packed` where there is no such form.
        """
        if packed and not self.packs:
            raise ProbqError(f"--packed is a form of onnx; leave it out for {self.name}")
        more = {"packed": True} if packed else {"name": name} if self.named and name is not None else {}
        return self._writer().write(model, path, **dict(self.options), **more)

    def open(self, path: Path) -> AbstractContextManager[Computation]:
        """Compile or load an artefact once; inside the context it is a function of the integers.

        Raises:
            ProbqError: as the module's `opened`.
        """
        opened: AbstractContextManager[Computation] = self._writer().opened(path)
        return opened

    def _writer(self) -> Any:
        return importlib.import_module(f"probq.export.{self.module}")  # when used: the command line starts without


TARGETS = (
    Target("onnx", "onnx", ".onnx", "standard operators, for ONNX Runtime and others", packs=True,
           libraries=("onnx", "onnxruntime")),
    Target("c", "c", ".h", "one C99 header, and a test program with vectors"),
    Target("qonnx", "qonnx", "_qonnx.onnx", "QONNX as hls4ml reads it", domains=("qonnx.", "finn."),
           libraries=("qonnx",)),
    Target("qonnx-finn", "qonnx", "_finn.onnx", "QONNX as FINN reads it", (("flavour", "finn"),),
           domains=("qonnx.", "finn."), libraries=("qonnx",)),
    Target("memory", "memory", "_memory", "$readmemh files and test vectors for hand-written hardware"),
    Target("hls", "hls", "_hls", "an hls4ml project", named=True, libraries=("hls4ml",)),
    Target("verilog", "verilog", "_verilog", "Verilog by da4ml, for small networks", named=True, libraries=("da4ml",)),
)  # fmt: skip


def recognize(path: Path) -> Target:
    """Return the target that wrote a file or folder, by its name and content.

    Raises:
        ProbqError: there is none, it is of no known target, or it is damaged.
    """
    if path.is_dir():
        name = target_of(path)
        for target in TARGETS:
            if target.module == name and not target.suffix:
                return target
        raise ProbqError(f"{path} is of no known target ({name!r:.40}); give a folder that write wrote")
    if not path.is_file():
        raise ProbqError(f"there is no file {path}; give the path that write was given")
    known = [target for target in TARGETS if target.suffix and target.suffix == path.suffix]
    if not known:
        suffixes = dict.fromkeys(target.suffix for target in TARGETS if target.suffix)
        raise ProbqError(f"{path} is of no known target; give a file that ends in {' or '.join(suffixes)}")
    if len(known) == 1:
        return known[0]
    domains = _domains(path)
    of_domain = [target for target in known if any(domain.startswith(target.domains) for domain in domains)]
    return of_domain[0] if of_domain else next(target for target in known if not target.domains)


def _domains(path: Path) -> set[str]:
    """Return the domains of the nodes of an ONNX file.

    Raises:
        ProbqError: onnx is missing, or the file is damaged.
    """
    try:
        proto = require("onnx", "onnx").load(str(path))
    except ProbqError:
        raise
    except Exception as error:  # protobuf's exceptions have no common base with onnx's
        raise ProbqError(f"{path} is not an ONNX file, or is damaged ({sentence(error)}); write it again") from error
    return {node.domain for node in proto.graph.node}
