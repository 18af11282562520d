"""Finds plug-ins by name, in the table and among installed packages, and imports them.

Only this module, `refbench.lazy` and the command table import modules by name at run time. Therefore `refbench --help`
loads neither torch nor pandas, and a missing extra is an error only if a feature needs it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from refbench.errors import AdapterError, RefbenchError, no_exit, text_of
from refbench.plugins.options import bind_options
from refbench.plugins.table import TABLE

LARGEST_NUMBER = 1e6
FAMILY = re.compile(r"([^()]+)\(([-+.,\de]+)\)")


class UnknownPlugin(RefbenchError):
    """There is no plug-in with this name."""


def available(kind: str) -> dict[str, str]:
    """The place ("module:attribute") of each built-in or installed plug-in, by name."""
    return dict(_available(kind, tuple(sys.path)))


@lru_cache(maxsize=32)
def _available(kind: str, _: tuple[str, ...]) -> dict[str, str]:
    """See `available`. Listing the installed packages takes milliseconds; `sys.path` says which packages there are."""
    found = dict(TABLE[kind])
    for point in sorted(entry_points(group=f"refbench.{kind}"), key=lambda p: p.name):
        if point.name in found:
            raise RefbenchError(
                f"the installed package {point.dist.name if point.dist else '?'} registers {point.name!r} in "
                f"refbench.{kind}, but this name is already in use; rename the plug-in, or uninstall the package"
            )
        found[point.name] = point.value
    return found


def load(kind: str, name: str) -> Any:
    """Import the plug-in `name`.

    Raises:
        UnknownPlugin: no plug-in has this name; the message suggests similar names, or lists all.
        RefbenchError: its module needs a package that is not installed; the message names the extra.
    """
    places = available(kind)
    base, arguments = _family(name) if kind == "protocols" else (name, None)
    families = {place.partition("(")[0]: place for place in places if "(" in place}
    known = name if name in places else families.get(base, "" if arguments is not None else base)
    if known not in places:
        hint = ", or path/to/file.py:Class" if kind == "adapters" else ""
        # Users know builders by what they build.
        word = "dataset" if kind == "builders" else kind[:-1]
        lower = {place.lower(): place for place in places}
        close = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3)]
        if close:
            raise UnknownPlugin(f"unknown {word} {name!r}; did you mean {' or '.join(close)}{hint}?")
        raise UnknownPlugin(f"unknown {word} {name!r}; choose from {', '.join(places)}{hint}")
    found = load_attribute(places[known])
    if "(" not in known:
        return found
    try:
        inspect.signature(found).bind(*(arguments or ()))
    except TypeError:
        raise UnknownPlugin(f"{name} has too many numbers in parentheses; expected {known}") from None
    return found(*(arguments or ()))


def _family(name: str) -> tuple[str, list[float] | None]:
    """`trimap(3)` -> ("trimap", [3.0]); without parentheses, the name and None."""
    match = FAMILY.fullmatch(name)
    try:
        numbers = [float(n) for n in match[2].split(",")] if match else []
    except ValueError:
        return name, None
    # The numbers are widths or counts in pixels: one larger than any image belongs to no protocol.
    return (match[1], numbers) if match and max(map(abs, numbers)) < LARGEST_NUMBER else (name, None)


def load_attribute(place: str) -> Any:
    """Import "module:attribute"."""
    module_name, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("torch", "transformers", "safetensors"):
            raise RefbenchError(f"{missing} is not installed; run: pip install 'refbench[models]'") from error
        if missing == "cv2":
            raise RefbenchError("OpenCV is not installed; run: pip install 'refbench[opencv]'") from error
        if missing in ("svgelements", "urllib3"):
            raise RefbenchError(f"{missing} is not installed; run: pip install 'refbench[moondream]'") from error
        if missing == "onnxruntime":
            raise RefbenchError("onnxruntime is not installed; run: pip install 'refbench[onnx]'") from error
        if missing == "ray":
            raise RefbenchError(
                "--engine ray needs Ray, which is not installed; run: pip install 'refbench[ray]'"
            ) from error
        if missing in ("starlette", "uvicorn"):
            raise RefbenchError(
                f"the review page needs {missing}, which is not installed; run: pip install 'refbench[review]'"
            ) from error
        if missing == "hotcoco":
            raise RefbenchError("hotcoco is not installed; run: pip install 'refbench[ap]'") from error
        if missing in ("huggingface_hub", "datasets"):
            raise RefbenchError(f"{missing} is not installed; run: pip install 'refbench[hub]'") from error
        raise RefbenchError(f"{place} needs the package {missing}, which is not installed") from error
    except (ImportError, AttributeError) as error:
        raise RefbenchError(
            f"{place} cannot be loaded: {error}; fix or uninstall the package that provides it"
        ) from error


def summary_of(place: str) -> str:
    """First paragraph of the docstring of "module:attribute" as one line, read without importing the module."""
    module_name, _, attribute = place.partition(":")
    try:
        spec = importlib.util.find_spec(module_name)
        tree = ast.parse(Path(spec.origin or "").read_text(encoding="utf-8") if spec else "")
    except (ImportError, OSError, ValueError, SyntaxError):
        return "cannot be read: a package that it needs is missing or broken"
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == attribute:
            return _first_paragraph(node)
    return _first_paragraph(tree)


def _first_paragraph(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def load_adapter(name: str, options: Mapping[str, str], **offered: Any) -> Any:
    """Create an adapter from its name, or from `path/to/file.py:Class`.

    `options` are strings (`-o key=value`), converted to the annotated types of the constructor. `offered` are arguments
    such as the device; each is passed only if the constructor has a parameter for it.

    Raises:
        AdapterError: the file or class does not exist, or an option is unknown or cannot be converted.
    """
    path, colon, class_name = name.rpartition(":")
    if colon and path.endswith(".py"):
        factory = _load_file(Path(path), class_name)
    elif name.endswith(".py"):
        raise AdapterError(f"{name} does not specify the adapter class; write {name}:ClassName")
    else:
        factory = load("adapters", name)
    arguments = bind_options(name, factory, options, offered)
    parameters = inspect.signature(factory).parameters
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.name not in arguments and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing:
        raise AdapterError(f"{name} needs {', '.join(f'-o {m}=...' for m in missing)}")
    try:
        with no_exit(f"the constructor of {name}"):
            return factory(**arguments)
    except RefbenchError:
        raise
    except Exception as error:  # somebody else's constructor: whatever it raises is reported as its failure
        raise AdapterError(f"{name} cannot be created: {type(error).__name__}: {text_of(error)}") from error


def _load_file(path: Path, class_name: str) -> Any:
    if not path.is_file():
        raise AdapterError(f"the adapter file {path} does not exist")
    # Under a name of its own in sys.modules, so that dataclasses and pickling inside the file work.
    module_name = f"refbench_adapter_{path.stem}"
    # Modules beside the file can be imported, as when Python runs it; last on the path, so that they shadow nothing.
    neighbours = str(path.resolve().parent)
    if neighbours not in sys.path:
        sys.path.append(neighbours)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise AdapterError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with no_exit(str(path)):
            spec.loader.exec_module(module)
    except AdapterError:
        raise
    except Exception as error:  # the user's file may fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == "worker_sdk":
            raise AdapterError(
                f"{path} is a worker; run it with: refbench run worker DATASET/SPLIT -o script={path}"
            ) from None
        raise AdapterError(f"{path} cannot be imported: {type(error).__name__}: {text_of(error)}") from error
    if not hasattr(module, class_name):
        raise AdapterError(f"{path} has no class {class_name!r}")
    return getattr(module, class_name)
