"""Public names of probq: in code font they are links, and the reference must describe all of them."""

import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.ext import intersphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

import probq

MODULES = (*(name for name in probq.__all__ if inspect.ismodule(getattr(probq, name))), "testing")
ELSEWHERE = ("torch.", "pyro.", "arviz.", "numpy.", "pandas.")
# Short in hints, where a library is imported for the type checker alone or a hint stands in an alias.
ALIASES = types.MappingProxyType({"Axes": "matplotlib.axes.Axes", "Tensor": "torch.Tensor"})
METADATA = frozenset(f"probq.{key}" for key in ("input_scale", "output_exponent", "output_scale", "widths"))
PLAIN = frozenset({"Levels", "probq.json", *METADATA})  # an alias, a file, keys of metadata
VERBS = frozenset({"decide", "fit", "lower", "pareto", "quantize"})  # functions that docstrings name without "probq."
NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?", re.DOTALL)


def public(module: types.ModuleType) -> list[str]:
    """Public names of a module: those it declares, or all that it defines."""
    declared = getattr(module, "__all__", None)
    defined = (n for n, item in vars(module).items() if getattr(item, "__module__", None) == module.__name__)
    return [name for name in declared or defined if not name.startswith("_")]


def public_module(name: str) -> types.ModuleType:
    """A public module, which Sphinx then finds under its public name, wherever it lies."""
    module = getattr(probq, name) if name in probq.__all__ else importlib.import_module(f"probq.{name}")
    if module.__name__ != f"probq.{name}":
        module.__all__ = public(module)  # or autodoc looks for what is defined under the public name
        sys.modules[f"probq.{name}"] = module
    return module


def members(path: str, item: Any) -> Iterator[str]:
    """Paths of the public methods and properties of a class, for `Quantized` those of its bases in probq too."""
    bases = item.__mro__ if item is probq.Quantized else (item,)
    for owner in (base for base in bases if base.__module__.startswith("probq.")):
        for name, member in vars(owner).items():
            is_code = callable(member) or isinstance(member, property | classmethod | staticmethod)
            is_field = name in getattr(owner, "__dataclass_fields__", ())
            if is_code and not is_field and member.__doc__ and not name.startswith("_"):
                yield f"{path}.{name}"


def all_names() -> tuple[dict[str, str], dict[str, str]]:
    """Every public path, by the path where its object is defined, and by its last name where that is clear."""
    homes: dict[str, str] = {}
    items = [(f"probq.{name}", getattr(probq, name)) for name in probq.__all__ if name not in MODULES]
    for name in MODULES:
        module = public_module(name)
        items += [(f"probq.{name}.{inner}", getattr(module, inner)) for inner in public(module)]
    last: dict[str, list[str]] = {}
    for path, item in items:
        if not inspect.ismodule(item):
            homes[f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', path)}"] = path
            homes[path] = path
            last.setdefault(path.rpartition(".")[2], []).append(path)
            homes |= {inner: inner for inner in members(path, item)} if inspect.isclass(item) else {}
    short = {name: paths[0] for name, paths in last.items() if len(paths) == 1 and name[0].isupper()}
    return homes, short


LOGGER = logging.getLogger(__name__)
HOMES, SHORT = all_names()


def target(text: str) -> str | None:
    """The path that a text in code font names, if it is one to link to."""
    match = NAME.fullmatch(text)
    if match is None:
        return None
    path = re.sub(r"^q\.", "probq.Quantized.", match[1])
    head, dot, rest = path.partition(".")
    known = HOMES.get(path) or HOMES.get(f"{SHORT.get(head)}{dot}{rest}")
    if known or path.startswith(ELSEWHERE):
        return known or path
    return f"probq.{path}" if path in VERBS else path if path.startswith("probq.") and is_there(path) else None


def is_there(path: str) -> bool:
    """Whether a dotted path leads to something from probq's public names."""
    item: Any = probq
    for name in path.split(".")[1:]:
        item = public_module(name) if item is probq and name in MODULES else getattr(item, name, None)
    return item is not None


class LinkNames(SphinxTransform):
    """Names in code font become references."""

    default_priority = 650

    def apply(self, **_: Any) -> None:
        """Change the document in place."""
        for node in list(self.document.findall(nodes.literal)):
            parent = node.parent
            if isinstance(parent, nodes.title | nodes.reference | nodes.term | addnodes.pending_xref):
                continue
            text = node.astext()
            path = target(text)
            if path is None and text not in PLAIN and re.fullmatch(r"probq(\.\w+)+", text):
                LOGGER.warning("%s is no public name", text, location=node)
            if path is not None:
                kind = {"refdomain": "py", "reftype": "obj", "reftarget": path, "refexplicit": True}
                reference = addnodes.pending_xref("", node.deepcopy(), soft=True, refdoc=self.env.docname, **kind)
                node.replace_self(reference)


def shorter(path: str) -> str | None:
    """The public path of an object of another library, from the private one that a type hint has."""
    module, _, name = path.rpartition(".")
    parts = module.split(".")
    home = sys.modules.get(module)
    for end in range(1, len(parts)):
        place = sys.modules.get(".".join(parts[:end]))
        if home and place and getattr(place, name, None) is getattr(home, name):
            return ".".join([*parts[:end], name])
    return None


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """A reference to an object where it is defined leads to its public name; what is not public stays plain text."""
    path = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    known = HOMES.get(path) or SHORT.get(path)
    if known and known != path:
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", known, node, content)
    if node.get("soft") or path in PLAIN or path.startswith("probq."):
        return content
    elsewhere = ALIASES.get(path) or shorter(path)
    if elsewhere is None:
        return None
    node["reftarget"] = elsewhere
    return intersphinx.missing_reference(app, env, node, content)


def check(_app: Any, env: Any) -> None:
    """Warn of every public name that no page of the reference describes."""
    described = {entry[0] for entry in env.get_domain("py").get_objects()}
    for path in sorted(set(HOMES.values()) | {f"probq.{name}" for name in MODULES}):
        if path not in described:
            LOGGER.warning("no page of docs/reference describes %s", path)


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_transform(LinkNames)
    app.connect("missing-reference", resolve, priority=900)  # after intersphinx
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
