"""A submission: the folder of a scored run as it is added to a leaderboard, with figures that can be computed again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from refbench._version import __version__
from refbench.errors import RunError
from refbench.reports.leaderboard import format_interval
from refbench.reports.names import system_name
from refbench.reports.recomputation import Status, Verdict, verify
from refbench.runs.folder import RunFolder
from refbench.scoring.counts import SCORES_FILE
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.results import SUMMARY_FILE, read_result
from refbench.storage.escaping import code, markdown, markdown_table
from refbench.storage.files import path_sha256, read_table, write_json, write_table

README_FILE, LINK_FILE = "README.md", "predictions.json"
# Texts of the model are of no use for scoring, and may be private.
PRIVATE_COLUMNS = ("raw", "note")


@dataclass(frozen=True, slots=True)
class Submission:
    """A submission that was written: its folder, its verdicts, and the command with which others verify it."""

    folder: Path
    verdicts: list[Verdict]
    command: str


def submit(source: Path, out: Path, *, url: str = "") -> Submission:
    """Check a scored run, and write what a pull request to a leaderboard needs.

    Args:
        source: a run folder that was scored.
        out: the folder of the leaderboard's runs; the submission is written to `<adapter>/<dataset>-<split>` in it.
        url: where the predictions can be downloaded; if given, they are not copied, and `predictions.json` states the
            address and their sha256.

    Raises:
        RunError: the figures of the run are not those of its predictions or cannot be computed here, the run has
            failed samples only, or the submission already exists.
    """
    run = RunFolder(source)
    if not run.is_there:
        raise RunError(f"{source} is not a run folder; make the predictions with `refbench run`, then score them")
    if not (source / SUMMARY_FILE).is_file():
        raise RunError(f"{source} is not scored; run `refbench score {source}` first")
    verdicts = verify(source)
    problem = next((v for v in verdicts if v.status is not Status.VERIFIED), None)
    if problem is not None:
        raise RunError(
            f"{source}, protocol {problem.protocol or 'unknown'}: {problem.status}: {problem.reason}. Only runs "
            "whose figures are computed again here can be submitted"
        )
    result = read_result(source)
    if result.failures == result.samples:
        raise RunError(f"{source} has failed samples only; there is nothing to rank")
    info = run.info
    if info.limit is not None:
        raise RunError(f"{source} is a run on the first {info.limit} samples only; run the whole split")
    name = re.sub(r"[^\w.,=+-]+", "-", system_name(info)).strip("-.")
    folder = out / name / f"{info.dataset}-{info.split}"
    if folder.exists():
        raise RunError(f"{folder} already exists; remove it, or choose another folder with --out")
    staging = out / f".{os.getpid()}.submission"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        # As it is read: options that look like secrets are hidden, also in files of earlier versions.
        RunFolder(staging).write_info(info)
        for file in (SUMMARY_FILE, SCORES_FILE):
            if (source / file).is_file():
                shutil.copyfile(source / file, staging / file)
        predictions = source / "predictions"
        if url:
            link = {"url": url, "sha256": path_sha256(predictions, "*.parquet"), "files": len(run.shards)}
            write_json(staging / LINK_FILE, link)
        else:
            (staging / "predictions").mkdir()
            for shard in run.shards:
                _copy_shard(shard, staging / "predictions" / shard.name)
        # From the folder of the runs, so that it holds on every machine.
        command = f"refbench leaderboard verify {shlex.quote(folder.relative_to(out).as_posix())}"
        (staging / README_FILE).write_text(_readme(system_name(info), source, command, url), encoding="utf-8")
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Submission(folder, verdicts, command)


def _copy_shard(shard: Path, to: Path) -> None:
    """Copy a shard of predictions without the texts of the model."""
    table = read_table(shard)
    for name in PRIVATE_COLUMNS:
        if name in table.column_names:
            place = table.column_names.index(name)
            empty = pa.array([""] * len(table), table.schema.field(name).type)
            table = table.set_column(place, table.schema.field(name), empty)
    write_table(to, table)


def _readme(name: str, source: Path, command: str, url: str) -> str:
    result = read_result(source, with_scores=False)
    rows = [["protocol", "metric", "% [95 % interval]"]]
    for protocol, summary in result.summaries.items():
        shown = REFBENCH.metrics if protocol == REFBENCH.name else summary.metrics
        rows += [[protocol, metric, format_interval(summary.metrics[metric])] for metric in shown]
    where = f"The predictions are at {markdown(url)}; put them into `predictions/` first." if url else ""
    return "\n".join(
        [
            f"# {markdown(name)} on {markdown(result.address)}",
            "",
            f"{result.samples} samples, {result.failures} failed, {result.missing} of them without a prediction. "
            f"Dataset fingerprint {code(result.fingerprint[:12])}. Written by refbench {__version__}.",
            "",
            markdown_table(rows),
            f"To compute these figures again, build {markdown(result.address)} and run in the folder of the runs:",
            "",
            f"    {command}",
            "",
            *([where, ""] if where else []),
        ]
    )
