"""The architecture, enforced: layers point one way, no cycles, no imports inside functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "refbench"
WORKERS = PACKAGE / "adapters" / "workers"

# Lowest first; rooms of one row do not import each other.
ORDER = (
    ("lazy", "errors"),
    ("plugins",),
    ("masks",),
    ("records",),
    ("storage",),
    ("datasets", "adapters"),
    ("runs",),
    ("scoring",),
    ("reports", "integrations"),
    ("curation",),
    ("cli",),
)
ROWS = {room: row for row, rooms in enumerate(ORDER) for room in rooms}
# The facade re-exports for type checkers; `python -m refbench` is the command line.
EXEMPT = {"__init__", "__main__", "_version"}
DOORS = {"loading.py", "lazy.py"}
# What may import torch: loaded only by those who use it.
WITH_TORCH = (
    "adapters.tiny", "adapters.clipseg", "curation.refiners.sam", "curation.checks.tox",
    "curation.refiners.trained", "curation.refiner_training", "datasets.collation", "masks.tensor_counts",
    "curation.refiners.sam3_text",
    "integrations.torchmetrics",
    "adapters.tensor_masks", "adapters.torch_settings", "adapters.segment_anything", "adapters.grounded_sam",
    "adapters.owlv2_sam", "adapters.sam3", "adapters.box_prompts", "adapters.florence2", "adapters.paligemma",
    "adapters.qwen_vl_sam", "adapters.pixel_values",
)  # fmt: skip


def sources() -> list[Path]:
    """The files of the package; workers are run by other interpreters, each with the libraries of its own."""
    return [p for p in sorted(PACKAGE.rglob("*.py")) if WORKERS not in p.parents]


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sources():
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        found[name.removesuffix(".__init__") if name != "__init__" else name] = ast.parse(path.read_text())
    return found


def imports_of(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of refbench that a module imports, as names below the package."""
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {a.name.removeprefix("refbench.") for a in node.names if a.name.startswith("refbench.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refbench":
            assert node.level == 0
            inside = (node.module or "").removeprefix("refbench").removeprefix(".")
            for alias in node.names:
                deeper = f"{inside}.{alias.name}".strip(".")
                out.add(deeper if deeper in known else inside)
    return out - {""}


def test_every_room_has_its_place() -> None:
    rooms = {name.split(".")[0] for name in modules()} - EXEMPT
    assert rooms == set(ROWS)


def test_imports_point_down() -> None:
    found = modules()
    wrong = []
    for name, tree in found.items():
        room = name.split(".")[0]
        if room in EXEMPT:
            continue
        for imported in imports_of(tree, set(found)):
            other = imported.split(".")[0]
            if other not in (room, "_version") and ROWS[other] >= ROWS[room]:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_no_import_cycles() -> None:
    found = modules()
    graph = {name: imports_of(tree, set(found)) for name, tree in found.items() if name not in EXEMPT}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join([*path, name])}"
        if name in done:
            return
        for imported in graph.get(name, ()):
            visit(imported, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_no_imports_inside_functions_and_two_lazy_doors() -> None:
    wrong = []
    for path in sources():
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                wrong += [
                    f"{path.name}:{n.lineno}" for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))
                ]
        dynamic = [
            n.lineno
            for n in ast.walk(tree)
            if (isinstance(n, ast.Attribute) and n.attr in ("import_module", "exec_module"))
            or (isinstance(n, ast.Name) and n.id == "__import__")
        ]
        if dynamic and path.name not in DOORS:
            wrong += [f"{path.name}:{line} imports by name" for line in dynamic]
    assert not wrong


def test_a_module_never_bears_the_name_of_a_function_it_exports() -> None:
    for name, tree in modules().items():
        if name.startswith("cli"):
            continue
        functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        assert name.split(".")[-1] not in functions, name


def test_no_printing_and_no_exits_outside_the_command_line() -> None:
    wrong = []
    for path in sources():
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit"):
                wrong.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Assert):
                wrong.append(f"{path}:{node.lineno} asserts")
    assert not wrong


def test_core_does_not_import_torch() -> None:
    for name, tree in modules().items():
        if name.startswith(WITH_TORCH):
            continue
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("torch", "transformers", "safetensors") for n in names), name


@pytest.mark.parametrize("folder", ["datasets", "leaderboards"])
def test_data_folders_hold_no_python(folder: str) -> None:
    # A package `datasets` here would shadow Hugging Face's.
    assert not list((PROJECT / folder).rglob("*.py"))


@pytest.mark.slow
def test_every_public_function_and_class_is_described() -> None:
    missing = []
    for name, tree in modules().items():
        if ast.get_docstring(tree) is None:
            missing.append(name)
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            # Short helpers whose name and types say everything may go without.
            if public and ast.get_docstring(node) is None and len(node.body) > 8:
                missing.append(f"{name}.{node.name}")
    assert not missing
