"""Try the built wheel where nothing else of the source tree can be seen.

    python tests/check_wheel.py DIST CONSTRAINTS

A new virtual environment gets the wheel twice. First *bare*, with only what a deployed integer model needs: the
integer half must work where neither torch nor Pyro is installed. Then *full*, with its own dependencies and no extra:
every module and every public name must import.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

BARE_DEPENDENCIES = ("lazy-loader", "numpy", "safetensors")
INTEGER_HALF = ("integer", "export")  # they load the rest of it
NEEDS_TORCH = "probq.integer.lowering"  # makes integer models of networks
NEEDS_EXTRA = {"probq.training.lightning.quantization": "distributed"}  # modules whose classes are of another library
HEAVY = {"torch", "pyro", "arviz", "matplotlib", "pandas", "scipy"}


def check_bare() -> None:
    """The integer half and each of its modules import without torch and Pyro."""
    assert importlib.util.find_spec("torch") is None, "the bare environment has torch: the check would prove nothing"
    probq = importlib.import_module("probq")
    modules = [f"probq.{name}" for name in INTEGER_HALF]
    inside = [module for name in modules for module in _modules(importlib.import_module(name))]
    modules += [module for module in inside if not f"{module}.".startswith(f"{NEEDS_TORCH}.")]
    for name in modules:
        importlib.import_module(name)
    assert probq.IntegerModel.__module__ == "probq.integer.model"
    print(f"bare: {len(modules)} modules import without torch")


def check_full() -> None:
    """The package comes from the wheel, is lazy, and every module and public name in it imports."""
    probq = importlib.import_module("probq")
    heavy = HEAVY & set(sys.modules)
    assert not heavy, f"`import probq` alone loads {sorted(heavy)}"
    assert Path(probq.__file__).is_relative_to(sys.prefix), f"{probq.__file__} is not the installed package"
    assert probq.__version__ == importlib.metadata.version("probq")
    modules = [name for name in _modules(probq) if name not in NEEDS_EXTRA]
    for name in modules:
        importlib.import_module(name)
    for name, extra in NEEDS_EXTRA.items():
        told = _refusal(name, probq.ProbqError)
        assert f"probq[{extra}]" in told, f"without its extra, {name} says {told!r}"
    assert probq.__all__, "no public names"
    missing = [name for name in probq.__all__ if not hasattr(probq, name)]
    assert not missing, f"public names that do not import: {missing}"
    print(f"full: {len(modules)} modules and {len(probq.__all__)} public names import")


def _refusal(name: str, error: type[Exception]) -> str:
    """What the import of a module says that fails, or nothing."""
    try:
        importlib.import_module(name)
    except error as said:
        return str(said)
    return ""


def check(dist: Path, constraints: Path) -> None:
    """Look into the one wheel in `dist`, then install and try it."""
    (wheel,) = dist.glob("*.whl")
    _check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", constraints]

        _run(*pip, "--no-deps", wheel, cwd=folder)
        _run(*pip, *BARE_DEPENDENCIES, cwd=folder)
        _run(python, "-I", __file__, "bare", cwd=folder)

        _run(*pip, wheel, cwd=folder)
        _run(python, "-m", "pip", "check", "--disable-pip-version-check", cwd=folder)
        _run(python, "-I", __file__, "full", cwd=folder)
        _run(python.with_name("probq"), "--help", cwd=folder)
    print(f"{wheel.name} works in a new environment")


def _check_contents(wheel: Path) -> None:
    version = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["version"]
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"probq-{version}-"), f"{wheel.name} is not version {version}"
    assert "probq/py.typed" in names, "the wheel has no probq/py.typed: type checkers would ignore its hints"
    assert any(name.endswith("/licenses/LICENSE") for name in names), "the wheel has no LICENSE"
    foreign = [name for name in names if not re.match(r"probq(-[^/]+\.dist-info)?/", name)]
    assert not foreign, f"files that do not belong in the wheel: {foreign}"


def _modules(package) -> list[str]:
    """Names of all modules below a package, without __main__, which would run."""
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=_fail)
    return [module.name for module in found if not module.name.endswith("__main__")]


def _fail(name: str) -> None:
    raise ImportError(f"{name} does not import") from sys.exc_info()[1]


def _run(*command: object, cwd: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bare"]:
            check_bare()
        case ["full"]:
            check_full()
        case [dist, constraints]:
            check(Path(dist).resolve(), Path(constraints).resolve())
        case _:
            sys.exit(__doc__)
