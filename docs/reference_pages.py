"""MkDocs hook: reference pages made from the code, so that they cannot differ from it, and search without a network."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import click
import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from refbench.cli.main import refbench
from refbench.curation.check_quality import measured_checks
from refbench.plugins.loading import available, load, summary_of
from refbench.plugins.options import options_of
from refbench.records import RunInfo
from refbench.runs.timings import TIMINGS_SCHEMA
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.systems import SYSTEMS
from refbench.scoring.results import StatedProtocol, SummaryFile
from refbench.storage.manifest import Manifest, SplitInfo
from refbench.storage.predictions import PREDICTION_SCHEMA
from refbench.storage.samples import OBJECT_SCHEMA, SAMPLE_SCHEMA


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "cli": command_line(),
        "files": files_page(),
        "protocols": protocols(),
        "adapters": parts("adapters", ADAPTERS),
        "checks": parts("checks", CHECKS) + check_qualities(),
        "refiners": parts("refiners", REFINERS),
    }
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Make search work offline: replace the script that the theme would load from another host by a local file."""
    local = get_relative_url("assets/file-worker.js", page.url)
    return re.sub(r"https://[^\"]+/iframe-worker/shim", local, output)


ADAPTERS = """# Adapters

`refbench run ADAPTER DATASET/SPLIT -o option=value`. See [Systems](../models/README.md) for how to run published ones.
"""
CHECKS = """# Checks

`refbench curate audit` runs them. A recipe sets an option of a check in its section `[checks.NAME]`.
"""
REFINERS = """# Refiners

`refbench curate propose` runs them to propose new masks. A recipe names them and their options.
"""


def command_line() -> str:
    """Every command with its `--help`."""
    text = "# Command line\n\nEvery command has `--help`.\n"
    for path, command in commands(refbench, ("refbench",)):
        context = click.Context(command, info_name=" ".join(path), terminal_width=78, max_content_width=78)
        text += f"\n{'#' * min(len(path), 3)}{'#' if len(path) == 1 else ''} {' '.join(path)}\n\n"
        text += f"```text\n{command.get_help(context)}\n```\n"
    return text


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and those below it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from commands(below, (*path, name))


def protocols() -> str:
    """Every protocol with its source, metrics, systems and caveats."""
    text = (
        "# Protocols\n\nA protocol is one published scoring rule: `refbench score PREDICTIONS --protocol NAME`. "
        "Metrics have the names that the original prints. A name with parentheses takes numbers: `trimap(3)`.\n"
    )
    for name, place in available("protocols").items():
        rule = load("protocols", name.partition("(")[0])
        text += f"\n## {name}\n\n{summary_of(place) if '(' in name else rule.summary}\n\n"
        lines = [("Source", rule.source), ("Used by", ", ".join(SYSTEMS.get(name, ())))]
        if isinstance(rule, Protocol):
            lines += [
                ("Same as", rule.same_as),
                ("Headline", f"`{rule.headline}`"),
                ("Metrics", ", ".join(f"`{m}`" for m in rule.metrics)),
                ("Only for", ", ".join(rule.datasets)),
            ]
        text += "".join(f"* **{label}**: {value}\n" for label, value in lines if value)
        text += "".join(f"* *{caveat}*\n" for caveat in rule.caveats)
    return text


def check_qualities() -> str:
    """How often the checks are right, source by source."""
    text = (
        "\n## How often they are right\n\nMeasured on masks whose true masks are known: 50 photographs of DAVIS 2016 "
        "with hurried outlines, and 236 objects in rendered scenes. A mask is faulty if it is on another object, or if "
        "its boundary IoU with the true mask is below 0.7. Precision is the share of the found masks that are faulty, "
        "and recall is the share of the faulty masks that are found. A guess has the precision in the column "
        "`faulty, all masks`; a check that is not above it is of no use there. Checks that found nothing are left out. "
        "Measure your own "
        "masks with `refbench curate audit DATASET/SPLIT --truth FILE`.\n\n"
        "| source | check | found | precision | faulty, all masks | recall |\n|---|---|--:|--:|--:|--:|\n"
    )
    for q in measured_checks():
        text += f"| {q.source} | {q.check} | {q.found} of {q.masks} | {q.precision:.0%} | {q.base_rate:.0%} | "
        text += f"{q.recall:.0%} |\n"
    return text


def parts(kind: str, head: str) -> str:
    """Every adapter, check or refiner with its description and options."""
    text = head
    for name, place in available(kind).items():
        part = load(kind, name)
        text += f"\n## {name}\n\n{description(part) or summary_of(place)}\n"
        options = options_of(part)
        if options:
            text += "\n| option | default | one of |\n|---|---|---|\n"
        for option in options:
            default = (
                "must be given" if option["default"] is None else f"`{option['default']}`" * bool(option["default"])
            )
            text += f"| `{option['name']}` | {default} | {' '.join(f'`{c}`' for c in option['choices'])} |\n"
    return text


def description(part: Any) -> str:
    """The docstring without its sections of arguments, which the table shows."""
    text = inspect.getdoc(part) or ""
    for section in ("\nArgs:", "\nRaises:", "\nReturns:"):
        text = text.partition(section)[0]
    return text.strip()


def files_page() -> str:
    """Folders and files, their fields and columns."""
    return f"""# Files

## Home

`$REFBENCH_HOME`, by default `~/.refbench`:

| place | holds |
|---|---|
| `datasets/<dataset>/` | a built dataset |
| `runs/<adapter>/<dataset>-<split>/` | a run |
| `curation/<dataset>-<split>/` | a curation |
| `envs/<name>/` | an environment for a worker |
| `cache/` | answers of web services, downloads from the hub |
| `weights/` | weights of networks that curation uses |

## Dataset

`<split>.parquet` has one row for each expression:

{columns(SAMPLE_SCHEMA)}

`objects.parquet` has every annotated object of the dataset's images:

{columns(OBJECT_SCHEMA)}

`manifest.json`:

{fields(Manifest)}

Each entry of `splits`:

{fields(SplitInfo)}

## Run folder

`run.json` is written first and completed last:

{fields(RunInfo)}

`predictions/part-*.parquet` holds the predictions. The parts depend on the dataset alone. An existing part
is complete, and its bytes do not depend on which worker computed it.

{columns(PREDICTION_SCHEMA)}

`timings.parquet` has one row for each part, in seconds and bytes (rows may be missing if the run was killed):

{columns(TIMINGS_SCHEMA)}

## Scores

`scores.parquet` has one row for each sample, in the order of the split: `sample_id`, `image_id`, `failed`, `no_target`,
`predicted_no_target`, and the counts in pixels `intersection`, `union`, `prediction_area`, `target_area`,
`boundary_intersection`, `boundary_union`.

`summary.json`: `failures` counts the samples without a usable prediction, `missing` those without any prediction.
`protocols` has every protocol that was scored on these predictions, whatever the order of the calls.

{fields(SummaryFile)}

Each entry of `protocols`; a metric is `{{"value", "low", "high"}}` in percent, null where the original gives no value:

{fields(StatedProtocol)}

## Predictions

`predictions.jsonl`, one object per line:

```json
{{"sample_id": "refcoco/testA/17/3", "size": [480, 640], "counts": "...", "score": 0.93, "no_target": false}}
```

`score`, `no_target` and `instances` (`[{{"counts": ..., "score": ...}}, ...]`) may be absent. COCO results, folders of
PNG masks and NPZ are read too: [Scoring](../guides/scoring.md).
"""


def columns(schema: pa.Schema) -> str:
    """A table of the columns of a Parquet file."""
    rows = "".join(f"| `{field.name}` | {field.type} |\n" for field in schema)
    return f"| column | type |\n|---|---|\n{rows}"


def fields(kind: Any) -> str:
    """A table of the fields of a JSON file."""
    hints = typing.get_type_hints(kind)
    rows = "".join(f"| `{f.name}` | {shown(hints[f.name])} |\n" for f in dataclasses.fields(kind))
    return f"| field | type |\n|---|---|\n{rows}"


def shown(hint: Any) -> str:
    """A type as a reader of JSON knows it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return f"object of {shown(arguments[1])}"
    if origin is list:
        return f"list of {shown(arguments[0])}"
    if arguments:
        return " or ".join(shown(a) for a in arguments)
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "value"}
    return names.get(hint, "object")
