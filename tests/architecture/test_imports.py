"""Who may import whom, read from the source of every file, and what importing does, seen from a new process.

The rules: imports go one way, in the order of the table of rooms in CONTRIBUTING, and never in a circle; the integer
half never reaches torch or Pyro; each library in `HOMES` stays at home; modules keep no mutable state and classes pass
nothing through.
"""

import ast
import graphlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "probq"
MOST_ENTRIES, MOST_FILES = 21, 14  # directly in probq, and in any folder

# Rooms from the bottom up, as CONTRIBUTING shows them. A module may import from rooms before its own, and from its own
# room without a circle.
ROOMS = tuple(
    re.findall(r"^\| `probq/([\w/]+?)(?:/|\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
)

TRAINING = {"torch", "pyro"}
# Rooms that work where neither torch nor Pyro is installed.
INTEGER_HALF = tuple(r for r in ROOMS if r in ("evaluation/metrics", "integer") or r.split("/")[0] == "export")

# Where a library may appear; no other module may import it, not even inside a function.
HOMES = {
    "pyro": {"network/distributions", "network/program", "training/svi"},
    "arviz": {"evaluation/diagnostics"},
    "matplotlib": {"plot", "plot/common"},
    "pickle": set(),
}
AT_HOME_INSIDE_FUNCTIONS = {("cli", "matplotlib")}

MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"}
MUTABLE_LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


class Import(NamedTuple):
    """One import statement's target, `deferred` when it runs inside a function."""

    target: str
    deferred: bool
    line: int


def imports(module: str, source: str, modules: Mapping[str, str]) -> Iterator[Import]:
    """The imports of a module that happen at run time; those under `if TYPE_CHECKING:` do not."""
    is_package = any(name.startswith(module + ".") for name in modules)
    package = module if is_package else module.rpartition(".")[0]

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, deferred)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, deferred, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in modules else base, deferred, node.lineno)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(ast.parse(source), False)


def room(module: str, modules: Mapping[str, str]) -> str:
    """The folder of a module, or the module itself directly in `probq`: `export/onnx` for `probq.export.onnx.graph`."""
    is_package = any(name.startswith(module + ".") for name in modules)
    parts = module.split(".")[1:]
    inside = parts if is_package or len(parts) < 2 else parts[:-1]
    return "/".join(inside) or "__init__"


def problems(modules: Mapping[str, str]) -> list[str]:
    """Every breach of the rules in sources given by module name, as sentences."""
    found = {name: list(imports(name, source, modules)) for name, source in modules.items()}
    places = {name: room(name, modules) for name in modules}
    return [
        *_order(found, places),
        *_circles(found),
        *_homes(found, places),
        *_integer_half(found, places),
        *(problem for name, source in modules.items() for problem in _state(name, source)),
    ]


def _order(found: Mapping[str, list[Import]], places: Mapping[str, str]) -> Iterator[str]:
    height = {name: place for place, name in enumerate(ROOMS)}
    for module, its_imports in found.items():
        own = places[module]
        if own not in height:
            if its_imports:
                yield f"{module} has no place in the table of rooms"
            continue
        for target, _, line in its_imports:
            other = places.get(target, own)
            if other != own and height.get(other, len(ROOMS)) >= height[own]:
                yield f"{module}:{line} imports {target}, which is above it"


def _circles(found: Mapping[str, list[Import]]) -> Iterator[str]:
    """Circles of modules, imports inside functions included."""
    graph = {module: {item.target for item in own if item.target in found} for module, own in found.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "imports go in a circle: " + " <- ".join(error.args[1])


def _homes(found: Mapping[str, list[Import]], places: Mapping[str, str]) -> Iterator[str]:
    for module, its_imports in found.items():
        for target, deferred, line in its_imports:
            library = target.split(".")[0]
            if places[module] in HOMES.get(library, {places[module]}):
                continue
            if not (deferred and (places[module], library) in AT_HOME_INSIDE_FUNCTIONS):
                yield f"{module}:{line} imports {library}, whose place is {sorted(HOMES[library]) or 'nowhere'}"


def _integer_half(found: Mapping[str, list[Import]], places: Mapping[str, str]) -> Iterator[str]:
    """Follow the imports of the integer half, deferred ones too, as far as they go."""
    for start in (name for name in found if places[name] in INTEGER_HALF):
        path_to = {module: module for module in _loaded_with(start) if module in found}
        queue = list(path_to)
        while queue:
            module = queue.pop()
            for target, _, _ in found[module]:
                if target.split(".")[0] in TRAINING:
                    yield f"{start} reaches {target.split('.')[0]}: {path_to[module]} -> {target}"
                for loaded in _loaded_with(target):
                    if loaded in found and loaded not in path_to:
                        path_to[loaded] = f"{path_to[module]} -> {loaded}"
                        queue.append(loaded)


def _loaded_with(target: str) -> list[str]:
    """Importing `a.b.c` runs `a` and `a.b` first."""
    return list(itertools.accumulate(target.split("."), "{}.{}".format))


def _state(module: str, source: str) -> Iterator[str]:
    for node in _module_level(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if (names := ", ".join(map(ast.unparse, targets))) != "__all__":
                yield f"{module}:{node.lineno} keeps mutable state in {names}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Global):
            yield f"{module}:{node.lineno} changes a global: {', '.join(node.names)}"
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            yield f"{module}:{node.lineno} defines __getattr__"


def _module_level(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run on import, in branches and loops too, but not in classes or functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from _module_level(child)


def _mutable(value: ast.expr) -> bool:
    called = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in MUTABLE_CALLS
    return called or isinstance(value, MUTABLE_LITERALS)


def read_package() -> dict[str, str]:
    """The source of every file of probq, by module name."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def loaded_by(statement: str) -> set[str]:
    """What a statement loads in a new process, by the first part of each module's name."""
    return set(run(f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})").split())


def run(program: str) -> str:
    """What a program prints in a new process."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_keeps_the_rules() -> None:
    modules = read_package()
    assert {"probq", "probq.utils.errors", "probq.integer", PROGRAM, "probq.cli.command_line"} <= set(modules)
    assert problems(modules) == []


def test_import_loads_nothing_heavy() -> None:
    heavy = TRAINING | {"arviz", "matplotlib", "pandas", "scipy", "sklearn", "onnx", "jinja2"}
    assert loaded_by("import probq") & heavy == set()


@pytest.mark.parametrize("name", INTEGER_HALF)
def test_integer_half_loads_neither_torch_nor_pyro(name: str) -> None:
    modules = read_package()
    below = [module for module in modules if room(module, modules) == name]
    assert below, f"probq/{name} does not exist"
    assert loaded_by(f"import {', '.join(below)}") & TRAINING == set()


def test_deployed_models_need_numpy_alone() -> None:
    modules = read_package()
    rooms = [r for r in INTEGER_HALF if r.split("/")[0] in ("integer", "export")]
    below = [module for module in modules if room(module, modules) in rooms]
    assert "probq.integer.ensemble" in below
    assert loaded_by(f"import {', '.join(below)}") & {"scipy", "pandas", "matplotlib"} == set()


def test_every_room_of_the_table_exists() -> None:
    assert len(ROOMS) == len(set(ROOMS)) > 30
    assert [r for r in ROOMS if not (PACKAGE / r).is_dir() and not (PACKAGE / f"{r}.py").is_file()] == []


def test_folders_are_not_crowded() -> None:
    def entries(folder: Path) -> list[Path]:
        return [path for path in folder.iterdir() if path.name != "__pycache__"]

    folders = [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert len(entries(PACKAGE)) <= MOST_ENTRIES
    assert [f for f in folders if sum(path.suffix == ".py" for path in entries(f)) > MOST_FILES] == []
    assert [f for f in folders if not (f / "__init__.py").read_text("utf-8").startswith('"""')] == []


def test_public_names_do_not_depend_on_what_was_imported_before() -> None:
    """`probq.lower` is a function and `probq/integer/lowering/lower.py` a module: the name means the function."""
    show = "import probq; print(*(f'{name}:{type(getattr(probq, name)).__name__}' for name in sorted(probq.__all__)))"
    everything = "import " + ", ".join(name for name in read_package() if not name.endswith("__main__"))
    kinds = run(show).split()
    assert "fit:function" in kinds
    assert run(f"{everything}; {show}").split() == kinds


# The rules themselves: a small package that keeps them, and what each of them finds.
GOOD = {
    "probq": "import lazy_loader as lazy\n__getattr__, __dir__, __all__ = lazy.attach(__name__)",
    "probq.utils.errors": "__all__ = ['ProbqError']",
    "probq.integer": "from probq.integer.model import IntegerModel",
    "probq.integer.model": "import numpy\nfrom probq.utils.errors import ProbqError",
    "probq.export": "",
    "probq.export.c": "from ...integer import model\nfrom probq.integer.model import IntegerModel",
    "probq.export.c.writer": "from probq import integer",
    "probq.network": "",
    "probq.network.tracing": "",
    "probq.network.tracing.layer": "import torch",
    "probq.network.tracing.trace": "from probq.network.tracing.layer import Layer",
    "probq.cost": "from probq.cost.layer_costs import bops",
    "probq.cost.layer_costs": "from probq.network.tracing.trace import layers\nSIZES = (1, 2)",
    "probq.network.distributions": "",
    "probq.network.distributions.codes": "import pyro.distributions as dist",
    "probq.network.program": "",
    "probq.network.program.program": "import torch, pyro\nfrom probq import cost",
    "probq.decisions": "",
    "probq.decisions.widths": "from probq.network.program.program import Program",
    "probq.network.quantize": "from probq.decisions import widths\ndef quantize():\n    state = {}",
    "probq.evaluation": "",
    "probq.evaluation.diagnostics": "",
    "probq.evaluation.diagnostics.inference_data": "def to_arviz():\n    import arviz",
    "probq.evaluation.reporting": "",
    "probq.training": "",
    "probq.training.svi": "",
    "probq.training.svi.loop": "import pyro, probq.network.program.program",
    "probq.training.fit": "from probq.training.svi.loop import Loop",
    "probq.cli": "",
    "probq.cli.command_line": "from probq import fit\ndef main():\n    import matplotlib",
}


def test_good_sources_pass() -> None:
    assert problems(GOOD) == []


TRACE, PROGRAM = "probq.network.tracing.trace", "probq.network.program.program"
BAD = {
    "upward": ("probq.cost.layer_costs", f"from {PROGRAM} import Program", "above it"),
    "upward, relative": ("probq.cost.layer_costs", "from ..network.program.program import Program", "above it"),
    "upward, from a package": ("probq.export.c", "from ...evaluation import reporting", "above it"),
    "upward, by the public name": ("probq.decisions.widths", "from probq import quantize", "above it"),
    "upward, inside a function": (TRACE, "def f():\n    import probq.training.fit", "above it"),
    "no place": ("probq.helpers", "import os", "no place in the table"),
    "circle": ("probq.network.tracing.layer", f"from {TRACE} import layers", "in a circle"),
    "circle, inside a function": ("probq.network.tracing.layer", f"def f():\n    import {TRACE}", "in a circle"),
    "pyro away from home": ("probq.decisions.widths", "import pyro", "imports pyro"),
    "pyro away from home, inside a function": (
        "probq.cli.command_line",
        "def f():\n    from pyro.infer import SVI",
        "imports pyro",
    ),
    "arviz away from home": ("probq.cli.command_line", "from arviz import summary", "imports arviz"),
    "matplotlib away from home": (
        "probq.evaluation.diagnostics.inference_data",
        "def f():\n    import matplotlib.pyplot",
        "imports matplotlib",
    ),
    "matplotlib in the command line, on import": ("probq.cli.command_line", "import matplotlib", "imports matplotlib"),
    "pickle": (PROGRAM, "import pickle", "imports pickle"),
    "integer half imports torch": ("probq.integer.model", "import torch", "reaches torch"),
    "integer half imports torch inside a function": ("probq.export.c", "def f():\n    import torch", "reaches torch"),
    "integer half reaches torch by another module": ("probq.export.c", f"import {TRACE}", "reaches torch"),
    "integer half reaches torch by its package": ("probq.export", "from torch import Tensor", "probq.export.c reaches"),
    "root reaches torch": ("probq", f"from {TRACE} import layers", "probq.integer reaches"),
    "list": ("probq.cost", "SEEN = []", "mutable state in SEEN"),
    "annotated dict": ("probq.cost", "SEEN: dict[str, int] = {}", "mutable state in SEEN"),
    "call": ("probq.cost", "SEEN = collections.defaultdict(list)", "mutable state in SEEN"),
    "in a branch": ("probq.cost", "if True:\n    SEEN = set()", "mutable state in SEEN"),
    "global": ("probq.cost", "def f():\n    global SEEN\n    SEEN = 1", "changes a global: SEEN"),
    "pass-through": (PROGRAM, "class A:\n    def __getattr__(self, name): ...", "defines __getattr__"),
}


@pytest.mark.parametrize(("module", "source", "message"), BAD.values(), ids=BAD.keys())
def test_bad_source_is_found(module: str, source: str, message: str) -> None:
    found = problems({**GOOD, module: source})
    assert any(message in problem for problem in found), found


def test_imports_for_type_checkers_do_not_count() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import numpy"
    assert [item.target for item in imports("probq.integer.model", source, GOOD)] == ["typing", "numpy"]
    assert problems({**GOOD, "probq.integer.model": source}) == []
