"""Edits the text of a recipe file: replaces fitted sections and keeps everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit

from refbench.curation.recipe import TRUSTED

CALIBRATION, TRUSTED_SECTION = "calibration", "trusted"
MEASURED = {
    CALIBRATION: "Measured by `refbench curate calibrate`, which writes this section.",
    TRUSTED_SECTION: "Measured by `refbench curate calibrate --known`, which writes this section.",
}


def with_section(text: str, name: str, values: Mapping[str, Any]) -> str:
    """The recipe with the section `name` set to `values`. An existing section is replaced, and comments outside it are
    kept.
    """
    document = tomlkit.parse(text)
    if name not in document:
        document.add(tomlkit.nl())
        document.add(name, tomlkit.table().add(tomlkit.comment(MEASURED[name])))
    section: Any = document[name]
    # Key by key: a comment before the next section belongs to this one for tomlkit.
    for key in [key for key in section if key not in values]:
        del section[key]
    for key, value in values.items():
        section[key] = _plain(value)
    return tomlkit.dumps(document).rstrip() + "\n"


def without_measured(text: str) -> str:
    """The recipe without its fitted sections."""
    return without_section(without_section(text, CALIBRATION), TRUSTED_SECTION)


def without_section(text: str, name: str) -> str:
    """The recipe without the section `name`."""
    document = tomlkit.parse(text)
    document.pop(name, None)
    return tomlkit.dumps(document).rstrip() + "\n"


def witnesses_only(text: str) -> str:
    """The recipe without its fitted sections and without its trusted refiner."""
    document = tomlkit.parse(without_measured(text))
    found: Any = document.get("refiners")
    # Anything else is refused by whoever parses the recipe.
    refiners: Any = found if isinstance(found, list) else []
    for k in reversed(range(len(refiners))):
        if isinstance(refiners[k], Mapping) and refiners[k].get("role") == TRUSTED:
            del refiners[k]
    return tomlkit.dumps(document)


def refiners_only(text: str) -> str:
    """A recipe with the same refiners and nothing else; proposals depend only on these."""
    document = tomlkit.document()
    if "refiners" in (given := tomlkit.parse(text).unwrap()):
        document.add("refiners", tomlkit.item(given["refiners"]))
    return tomlkit.dumps(document)


def _plain(value: Any) -> Any:
    """A value in the form that TOML stores: floats with an integer value become integers, and tuples become lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, tuple | list):
        rows = [_plain(v) for v in value]
        if rows and isinstance(rows[0], dict):
            tables = tomlkit.aot()
            for row in rows:
                tables.append(tomlkit.item(row))
            return tables
        return rows
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value
