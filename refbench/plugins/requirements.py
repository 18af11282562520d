"""Which packages a plug-in needs, read from the source of its modules without importing them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

OWN = "refbench"


def missing_packages(place: str) -> list[str]:
    """The packages that the module of "module:attribute" imports, directly or through refbench, and that are not
    installed.

    Imports inside functions, and modules of other packages, are not followed.
    """
    found: set[str] = set()
    _collect(place.partition(":")[0].partition("(")[0], found, set())
    return sorted(name for name in found if not _is_installed(name))


def _collect(module: str, packages: set[str], seen: set[str]) -> None:
    if module in seen:
        return
    seen.add(module)
    if module.count("."):
        # Importing a module imports the package around it first.
        _collect(module.rpartition(".")[0], packages, seen)
    for name in _imports(module):
        top = name.partition(".")[0]
        if top == OWN:
            _collect(name, packages, seen)
        else:
            packages.add(top)


@lru_cache(maxsize=512)
def _imports(module: str) -> tuple[str, ...]:
    """The modules that a module imports when it is imported; empty if it cannot be found."""
    try:
        tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError, ValueError):
        return ()
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from refbench.masks import kernels` imports a module, `from refbench.errors import X` does not.
            names += [node.module]
            if node.module.partition(".")[0] == OWN:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _source(module: str) -> Path:
    """The file of a module. Our own are looked up by path, because `find_spec` imports the parents of a module."""
    if module.partition(".")[0] == OWN:
        place = Path(__file__).parents[2].joinpath(*module.split("."))
        return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    top, *below = module.split(".")
    # Only the first part is looked up: looking up a module in a package would import the package.
    spec = importlib.util.find_spec(top)
    if spec is None:
        return Path()
    if not below:
        return Path(spec.origin or "")
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*below)
        if place.is_dir() or place.with_suffix(".py").is_file():
            return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return Path()


@lru_cache(maxsize=512)
def _is_installed(name: str) -> bool:
    if name in sys.stdlib_module_names:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
