"""What is imported or read when it is first used.

Nothing heavy is imported here, so that `import refbench` is fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

Item = TypeVar("Item")


def lazy_face(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when they are first used (PEP 562).

    `places` maps each name to its "module:attribute", or to a module.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place = places[name]
        # It says which extra to install if a package is missing.
        loading = importlib.import_module("refbench.plugins.loading")
        value = loading.load_attribute(place) if ":" in place else importlib.import_module(place)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *places})


class Later(Sequence[Item]):
    """A sequence that is read when it is first used."""

    def __init__(self, read: Callable[[], Sequence[Item]]) -> None:
        self._read = read

    @cached_property
    def items(self) -> Sequence[Item]:
        """What was read."""
        return self._read()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        return self.items[place]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)
