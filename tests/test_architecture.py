"""Who may import whom, read from the source of every file, and what importing does, seen from a new process.

The rules: imports go one way up `ORDER`; the integer half never reaches torch or Pyro; each library in `HOMES` stays at
home; modules keep no mutable state and classes pass nothing through.
"""

import ast
import graphlib
import itertools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "probq"

# From the bottom up. A module may import from its own row (without a circle) and from the rows below.
ORDER = (
    {"errors", "checks", "figures", "files", "file_kind", "versions"},
    {
        "integer",
        "export",
        "uncertainty",
        "reliability",
        "calibration",
        "regression",
    },
    {
        "codebooks",
        "random_stream",
        "gradients",
        "rounding",
        "stochastic_rounding",
        "gate_gradients",
        "distributions",
        "uniform_codes",
        "free_codes",
        "estimators",
        "priors",
        "likelihoods",
        "tracing",
        "scales",
        "cost",
        "cost_table",
        "expectation",
    },
    {
        "plan",
        "quantizer",
        "weight_quantizer",
        "activations",
        "budget",
        "assignment",
        "choices",
        "feasible",
        "solve",
        "draws",
        "chance",
        "ties",
        "neighbours",
        "search",
    },
    {"substitute", "fold", "frozen", "headroom", "norms", "network", "unfitted"},
    {"program"},
    {"limited"},
    {"decide", "stacked", "leave_one_out"},
    {"untuned", "lowering"},
    {"quantized"},
    {
        "calibrate",
        "validate",
        "batches",
        "history",
        "measure",
        "refine",
        "contenders",
        "constraint",
        "rules",
        "settling",
        "chains",
        "predictive",
    },
    {"loop", "rates", "trials", "phases"},
    {
        "posterior",
        "posterior_checks",
        "posterior_format",
        "posterior_laws",
        "posterior_network",
        "pareto",
        "fit",
        "effective",
        "lower",
        "summary",
        "plot",
        "criteria",
        "allocate",
        "ensembles",
    },
    {"inference_data", "convergence", "temperature"},
    {"report"},
    {"__init__"},  # the public names, for those who use probq as a user does
    {"demo", "testing", "cli_arguments"},
    {"cli_export", "cli_report"},
    {"cli"},
    {"__main__"},
)
# Methods of the public contract whose work is done above their class: imported inside the method.
# Quantized.save, History.plot, probq.decide
UPWARD = {("quantized", "posterior"), ("history", "plot"), ("decide", "refine")}

INTEGER_HALF = sorted(ORDER[0] | ORDER[1])
TRAINING = {"torch", "pyro"}

# Where a library may appear; no other module may import it, not even inside a function.
HOMES = {
    "pyro": {"distributions", "program", "loop"},
    "arviz": {"inference_data"},
    "matplotlib": {"plot"},
    "pickle": set(),
}
AT_HOME_INSIDE_FUNCTIONS = {("cli", "matplotlib"), ("cli_report", "matplotlib")}

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


def unit(module: str) -> str:
    """The part of probq that a module belongs to: `probq.export.onnx` to `export`, probq itself to `__init__`."""
    return (module + ".__init__").split(".")[1]


def problems(modules: Mapping[str, str]) -> list[str]:
    """Every breach of the rules in sources given by module name, as sentences."""
    found = {name: list(imports(name, source, modules)) for name, source in modules.items()}
    return [
        *_order(found),
        *_circles(found),
        *_homes(found),
        *_integer_half(found),
        *(problem for name, source in modules.items() for problem in _state(name, source)),
    ]


def _order(found: Mapping[str, list[Import]]) -> Iterator[str]:
    row = {name: height for height, names in enumerate(ORDER) for name in names}
    for module, its_imports in found.items():
        if unit(module) not in row:
            yield f"{module} has no place in ORDER"
            continue
        for target, deferred, line in its_imports:
            if target.split(".")[0] != "probq" or row.get(unit(target), 0) <= row[unit(module)]:
                continue
            if not (deferred and (unit(module), unit(target)) in UPWARD):
                yield f"{module}:{line} imports {target}, which is above it"


def _circles(found: Mapping[str, list[Import]]) -> Iterator[str]:
    graph: dict[str, set[str]] = {}
    for module, its_imports in found.items():
        targets = {unit(item.target) for item in its_imports if item.target.split(".")[0] == "probq"}
        lazy = {above for below, above in UPWARD if below == unit(module)}
        graph.setdefault(unit(module), set()).update(targets - lazy - {unit(module)})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "imports go in a circle: " + " <- ".join(error.args[1])


def _homes(found: Mapping[str, list[Import]]) -> Iterator[str]:
    for module, its_imports in found.items():
        for target, deferred, line in its_imports:
            library = target.split(".")[0]
            if unit(module) in HOMES.get(library, {unit(module)}):
                continue
            if not (deferred and (unit(module), library) in AT_HOME_INSIDE_FUNCTIONS):
                yield f"{module}:{line} imports {library}, whose place is {sorted(HOMES[library]) or 'nowhere'}"


def _integer_half(found: Mapping[str, list[Import]]) -> Iterator[str]:
    """Follow the imports of the integer half, deferred ones too, as far as they go."""
    for start in (name for name in found if unit(name) in INTEGER_HALF):
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
    assert {"probq", "probq.errors", "probq.integer", "probq.program", "probq.cli"} <= set(modules)
    assert problems(modules) == []


def test_import_loads_nothing_heavy() -> None:
    heavy = TRAINING | {"arviz", "matplotlib", "pandas", "scipy", "sklearn", "onnx"}
    assert loaded_by("import probq") & heavy == set()


@pytest.mark.parametrize("name", INTEGER_HALF)
def test_integer_half_loads_neither_torch_nor_pyro(name: str) -> None:
    below = [module for module in read_package() if unit(module) == name]
    assert below, f"probq.{name} does not exist"
    assert loaded_by(f"import {', '.join(below)}") & TRAINING == set()


def test_public_names_do_not_depend_on_what_was_imported_before() -> None:
    """`probq.fit` is a function and `probq/fit.py` a module: the name must mean the function in any order."""
    show = "import probq; print(*(f'{name}:{type(getattr(probq, name)).__name__}' for name in sorted(probq.__all__)))"
    everything = "import " + ", ".join(name for name in read_package() if not name.endswith("__main__"))
    kinds = run(show).split()
    assert "fit:function" in kinds
    assert run(f"{everything}; {show}").split() == kinds


# The rules themselves: a small package that keeps them, and what each of them finds.
GOOD = {
    "probq": "import lazy_loader as lazy\n__getattr__, __dir__, __all__ = lazy.attach(__name__)",
    "probq.errors": "__all__ = ['ProbqError']",
    "probq.integer": "import numpy\nfrom probq.errors import ProbqError",
    "probq.export": "",
    "probq.export.c": "from .. import integer\nfrom probq.integer import IntegerModel",
    "probq.tracing.trace": "import torch",
    "probq.cost": "from probq.tracing.trace import layers\nSIZES = (1, 2)",
    "probq.distributions": "import pyro.distributions as dist",
    "probq.program": "import torch, pyro\nfrom probq import cost",
    "probq.decide": "from probq.program import Program",
    "probq.quantized": "from probq import decide\ndef save():\n    from probq.posterior import save",
    "probq.posterior": "from probq.quantized import Quantized",
    "probq.loop": "import pyro, probq.program",
    "probq.lower": "from probq.integer import IntegerModel\ndef lower():\n    state = {}",
    "probq.inference_data": "def to_arviz():\n    import arviz",
    "probq.cli": "from probq import fit\ndef main():\n    import matplotlib",
}


def test_good_sources_pass() -> None:
    assert problems(GOOD) == []


BAD = {
    "upward": ("probq.cost", "from probq.program import Program", "above it"),
    "upward, relative": ("probq.cost", "from .program import Program", "above it"),
    "upward, from a package": ("probq.export.c", "from ..lower import lower", "above it"),
    "upward, by the public name": ("probq.decide", "from probq import quantize", "above it"),
    "upward, inside a function": ("probq.tracing.trace", "def f():\n    import probq.fit", "above it"),
    "upward, by an allowed pair but on import": ("probq.quantized", "from probq.posterior import save", "above it"),
    "no place": ("probq.helpers", "", "no place in ORDER"),
    "circle": ("probq.tracing.trace", "from probq.cost import bops", "in a circle"),
    "pyro away from home": ("probq.decide", "import pyro", "imports pyro"),
    "pyro away from home, inside a function": ("probq.cli", "def f():\n    from pyro.infer import SVI", "imports pyro"),
    "arviz away from home": ("probq.cli", "from arviz import summary", "imports arviz"),
    "matplotlib away from home": (
        "probq.inference_data",
        "def f():\n    import matplotlib.pyplot",
        "imports matplotlib",
    ),
    "matplotlib in the command line, on import": ("probq.cli", "import matplotlib", "imports matplotlib"),
    "pickle": ("probq.program", "import pickle", "imports pickle"),
    "integer half imports torch": ("probq.integer", "import torch", "reaches torch"),
    "integer half imports torch inside a function": ("probq.export.c", "def f():\n    import torch", "reaches torch"),
    "integer half reaches torch by another module": ("probq.export.c", "import probq.tracing.trace", "reaches torch"),
    "integer half reaches torch by its package": ("probq.export", "from torch import Tensor", "probq.export.c reaches"),
    "root reaches torch": ("probq", "from probq.tracing.trace import layers", "probq.errors reaches"),
    "list": ("probq.cost", "SEEN = []", "mutable state in SEEN"),
    "annotated dict": ("probq.cost", "SEEN: dict[str, int] = {}", "mutable state in SEEN"),
    "call": ("probq.cost", "SEEN = collections.defaultdict(list)", "mutable state in SEEN"),
    "in a branch": ("probq.cost", "if True:\n    SEEN = set()", "mutable state in SEEN"),
    "global": ("probq.cost", "def f():\n    global SEEN\n    SEEN = 1", "changes a global: SEEN"),
    "pass-through": ("probq.program", "class A:\n    def __getattr__(self, name): ...", "defines __getattr__"),
}


@pytest.mark.parametrize(("module", "source", "message"), BAD.values(), ids=BAD.keys())
def test_bad_source_is_found(module: str, source: str, message: str) -> None:
    found = problems({**GOOD, module: source})
    assert any(message in problem for problem in found), found


def test_imports_for_type_checkers_do_not_count() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import numpy"
    assert [item.target for item in imports("probq.integer", source, GOOD)] == ["typing", "numpy"]
    assert problems({**GOOD, "probq.integer": source}) == []
