"""Leaderboard tables: scored runs and published results, never in the same column.

Measured results use one protocol on one fingerprint, so they can be ranked. Only results that were computed again here,
from the predictions of the run, get a rank; the others stand below them with the reason. Published results use the
protocol of their paper. They are listed exactly as in the publication, with one column per metric. Every row states its
source and evidence.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from refbench.errors import RefbenchError
from refbench.records import Estimate
from refbench.reports.names import system_name
from refbench.reports.published import DATASET_OF_BENCHMARK, UNKNOWN
from refbench.reports.recomputation import Status, Verdict, by_protocol, verify_folders
from refbench.reports.standings import published_standings
from refbench.runs.folder import RunFolder
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.results import SUMMARY_FILE, read_summary
from refbench.storage.escaping import Markdown, code, csv_cell, markdown, markdown_table, plain
from refbench.storage.files import atomic_file
from refbench.storage.progress import Progress, silent

SHORT_NAMES = {
    "cumulative_iou": "cIoU",
    "mean_iou": "mIoU",
    "mean_boundary_iou": "mean boundary IoU",
    "cumulative_boundary_iou": "cumulative boundary IoU",
    **{f"precision_at_0.{t}": f"P@0.{t}" for t in (5, 6, 7, 8, 9)},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One scored run under one protocol; `metrics` are in percent with their intervals.

    A row has a rank only if its `status` is verified; otherwise `reason` says why not.
    """

    adapter: str
    address: str
    fingerprint: str
    protocol: str
    samples: int
    failures: int
    metrics: Mapping[str, Estimate]
    folder: Path
    status: Status = Status.VERIFIED
    reason: str = ""


def read_rows(
    folders: Iterable[Path], progress: Progress = silent, log: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """All scored runs in the given folders and their subfolders, with one row for each protocol.

    The figures of each run are computed again, if its predictions and its dataset are there. A folder that cannot be
    read has no row; `log` is called with the reason.
    """
    rows = []
    for folder, verdicts in verify_folders(folders, progress).items():
        try:
            rows += _rows(folder, by_protocol(verdicts))
        except RefbenchError as error:
            log(f"{folder} is left out: {error}")
    return rows


def _rows(folder: Path, verdicts: Mapping[str, Verdict]) -> list[Row]:
    content = read_summary(folder / SUMMARY_FILE)
    run = RunFolder(folder)
    name = system_name(run.info) if run.is_there else folder.name
    rows = []
    for protocol, entry in content.protocols.items():
        summary, verdict = entry.summary(protocol, content.failures), verdicts[protocol]
        rows.append(
            Row(
                name, content.address, content.fingerprint, protocol, summary.samples, summary.failures,
                summary.metrics, folder, verdict.status, verdict.reason,
            )
        )  # fmt: skip
    return rows


def measured_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One row per run and metric, with intervals."""
    lines = [
        {
            "dataset": row.address.split("/")[0],
            "split": row.address.split("/")[1],
            "fingerprint": row.fingerprint,
            "system": row.adapter,
            "status": str(row.status),
            "reason": row.reason,
            "protocol": row.protocol,
            "metric": metric,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "samples": row.samples,
            "failures": row.failures,
        }
        for row in rows
        for metric, estimate in row.metrics.items()
    ]
    columns = [
        "dataset",
        "split",
        "fingerprint",
        "system",
        "status",
        "reason",
        "protocol",
        "metric",
        "value",
        "low",
        "high",
        "samples",
        "failures",
    ]
    return pd.DataFrame(lines, columns=columns)


def ranked(rows: Sequence[Row], by: str = "cumulative_iou") -> list[Row]:
    """Best first; ties are in the order of their names."""
    return sorted(rows, key=lambda r: (-r.metrics[by].value if by in r.metrics else float("inf"), r.adapter))


def build_tables(rows: Sequence[Row], published: pd.DataFrame, out: Path) -> list[Path]:
    """Write `measured.csv`, `published.csv` and one Markdown page per dataset; returns the files.

    Names and notes are text of others; they are escaped in every file.
    """
    files = [
        _write(out / "measured.csv", _csv(measured_frame(rows))),
        _write(out / "published.csv", _csv(published)),
    ]
    published = published.assign(dataset=[DATASET_OF_BENCHMARK.get(b, b) for b in published["benchmark"]])
    places = sorted(
        {tuple(r.address.split("/")) for r in rows}
        | {(d, s) for d, s in zip(published["dataset"], published["split"], strict=True)}
    )
    by_dataset: dict[str, list[str]] = {}
    for dataset, split in places:
        here = [r for r in rows if r.address == f"{dataset}/{split}"]
        quoted = published[(published["dataset"] == dataset) & (published["split"] == split)]
        text = f"## {markdown(dataset)}/{markdown(split or 'split not stated')}\n\n"
        text += measured_markdown(here) if here else "No run of refbench yet.\n"
        if len(quoted):
            text += "\n" + published_markdown(quoted)
        by_dataset.setdefault(dataset, []).append(text)
    for dataset, sections in by_dataset.items():
        name = "".join(c if c.isalnum() or c in "-+" else "-" for c in dataset).strip("-").lower()
        files.append(_write(out / f"{name}.md", f"# {markdown(dataset)}\n\n" + "\n".join(sections)))
    return files


@dataclass(frozen=True, slots=True)
class Ranking:
    """Runs of one split and build under one protocol: verified ones sorted by the first of `metrics`, best first, and
    the others, which have no rank, sorted by name.
    """

    protocol: str
    fingerprint: str
    metrics: tuple[str, ...]
    rows: list[Row]
    unranked: list[Row]

    def head(self) -> list[str]:
        """The metrics as columns."""
        return [SHORT_NAMES.get(m, m) for m in self.metrics]

    def cells(self, row: Row) -> list[str]:
        """The values of a row in these columns."""
        return [format_interval(row.metrics[m]) if m in row.metrics else "" for m in self.metrics]


def rankings(rows: Sequence[Row]) -> list[Ranking]:
    """The runs of one split, grouped by protocol and fingerprint, because only runs of one group are comparable."""
    found = []
    for protocol, fingerprint in sorted({(r.protocol, r.fingerprint) for r in rows}, key=_own_protocol_first):
        group = [r for r in rows if (r.protocol, r.fingerprint) == (protocol, fingerprint)]
        known = dict.fromkeys(m for row in group for m in row.metrics)
        metrics = [m for m in SHORT_NAMES if m in known] if protocol == REFBENCH.name else list(known)
        verified = [r for r in group if r.status is Status.VERIFIED]
        others = sorted((r for r in group if r.status is not Status.VERIFIED), key=lambda r: (r.adapter, str(r.folder)))
        by = metrics[0] if metrics else ""
        found.append(Ranking(protocol, fingerprint, tuple(metrics), ranked(verified, by), others))
    return found


def _own_protocol_first(key: tuple[str, str]) -> tuple[bool, str, str]:
    protocol, fingerprint = key
    return protocol != REFBENCH.name, protocol, fingerprint


def measured_markdown(rows: Sequence[Row]) -> str:
    """Runs of one split with 95 % intervals, with a table for each of their `rankings`."""
    text = ""
    for ranking in rankings(rows):
        text += (
            f"Measured: protocol {code(ranking.protocol)}, fingerprint {code(ranking.fingerprint[:12])}, "
            "95 % intervals by image.\n\n"
        )
        head = ["system", *ranking.head(), "samples", "failures"]
        if ranking.rows:
            lines = [["#", *head]]
            for rank, row in enumerate(ranking.rows, start=1):
                lines.append([str(rank), *_cells(ranking, row)])
            text += markdown_table(lines) + "\n"
        if ranking.unranked:
            text += "Without a rank, because the figures were not computed again here:\n\n"
            lines = [[*head, "status", "reason"]]
            for row in ranking.unranked:
                lines.append([*_cells(ranking, row), str(row.status), row.reason])
            text += markdown_table(lines) + "\n"
    return text.removesuffix("\n")


def _cells(ranking: Ranking, row: Row) -> list[str]:
    return [row.adapter, *map(Markdown, ranking.cells(row)), str(row.samples), str(row.failures)]


def published_markdown(figures: pd.DataFrame) -> str:
    """Published results of one split: a table for each protocol, best first, and one for figures whose protocol is not
    known.
    """
    text = ""
    for standing in published_standings(figures):
        if standing.protocol == UNKNOWN:
            text += "Published, protocol not known; these figures are not comparable with each other:\n\n"
            lines = [["system", "variant", "metric as printed", "%", "evidence", "source", "note"]]
            lines += [
                [row.system, row.variant, metric, f"{value:g}", row.evidence, row.source, row.note]
                for row in standing.published
                for metric, value in row.metrics.items()
            ]
        else:
            used = f", used by {', '.join(standing.used_by)}" if standing.used_by else ""
            text += f"Published, protocol {code(standing.protocol)}{markdown(used)}:\n\n"
            lines = [["system", "variant", *standing.metrics, "evidence", "source", "note"]]
            for row in standing.published:
                cells = [f"{row.metrics[m]:g}" if m in row.metrics else "" for m in standing.metrics]
                lines.append([row.system, row.variant, *cells, row.evidence, row.source, row.note])
        text += markdown_table(lines) + "\n"
    return text.removesuffix("\n")


def format_interval(estimate: Estimate) -> str:
    """`71.3 [69.8, 72.9]`: percent with one decimal, and its interval; `-` for NaN."""
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _csv(frame: pd.DataFrame) -> str:
    buffer = io.StringIO()
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    safe = frame.assign(**{name: frame[name].map(lambda cell: csv_cell(plain(cell))) for name in texts})
    safe.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _write(path: Path, text: str) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
