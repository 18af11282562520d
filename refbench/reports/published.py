"""Published results: figures of papers, each with its source and the protocol behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from refbench.errors import RefbenchError, text_of
from refbench.plugins.loading import available, load
from refbench.scoring.protocols.base import Protocol
from refbench.scoring.protocols.exact import REFBENCH
from refbench.storage.files import check_is_file, project_data

PUBLISHED_COLUMNS = (
    "system",
    "variant",
    "benchmark",
    "split",
    "metric_id",
    "metric_as_printed",
    "value",
    "protocol",
    "protocol_note",
    "evidence",
    "source",
    "note",
)
# For figures whose evaluator is not known.
UNKNOWN = "unknown"
EVIDENCE = ("primary", "secondary")
DATASET_OF_BENCHMARK = {
    "RefCOCO": "refcoco",
    "RefCOCO+": "refcoco+",
    "RefCOCOg(umd)": "refcocog-umd",
    "RefCOCOg(google)": "refcocog-google",
    "RefCOCO-M": "refcoco-m",
    "gRefCOCO": "grefcoco",
    "LVIS": "lvis",
    "ReasonSeg": "reasonseg",
}
# What the metrics of published results are called by the protocols, in the words of their originals.
NAMES_OF_METRIC = {
    "ciou": ("overall IoU", "Overall IoU", "oIoU", "oIoU score", "cIoU", "ciou", "c_iou", "CIoU"),
    "miou": ("Mean IoU", "mIoU", "mIoU score"),
    "giou_gres": ("gIoU", "giou", "g_iou"),
    "giou_lisa": ("giou", "GIoU", "gIoU"),
    "n_acc": ("N_acc",),
    "t_acc": ("T_acc",),
    "box_precision_at_.5": ("rec_bbox_iou_0.5",),
    **{f"precision_at_.{t}": (f"precision@0.{t}", f"prec@0.{t}", f"Pr@{t}0", f"Pr@0.{t}") for t in (5, 6, 7, 8, 9)},
}
# CRIS prints the mean of the IoUs as "IoU".
EXCEPTIONS = {("cris", "miou"): "IoU"}


def read_published(folder: Path) -> pd.DataFrame:
    """All rows of `published/*.csv`, validated.

    Raises:
        RefbenchError: a row lacks its source, evidence, protocol or value; the message names the file and line.
    """
    frames = []
    known = {*available("protocols"), UNKNOWN}
    for path in sorted(folder.glob("*.csv")):
        try:
            check_is_file(path)
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (ValueError, OSError) as error:
            raise RefbenchError(f"{path} is not a CSV file in UTF-8 ({text_of(error)})") from None
        if tuple(frame.columns) != PUBLISHED_COLUMNS:
            raise RefbenchError(f"{path}: the columns must be {', '.join(PUBLISHED_COLUMNS)}")
        for position, row in enumerate(frame.to_dict("records")):
            problem = _published_problem(row, known)
            if problem:
                raise RefbenchError(f"{path} line {position + 2}: {problem}")
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=list(PUBLISHED_COLUMNS))
    return pd.concat(frames, ignore_index=True)


def _published_problem(row: Mapping[Any, Any], protocols: Collection[str]) -> str:
    try:
        value = float(row["value"])
    except ValueError:
        return f"the value {row['value']!r} is not a number"
    # All metrics of this field are percentages; this excludes NaN, too.
    if not 0 <= value <= 100:
        return f"the value must be between 0 and 100 (percent), got {row['value']!r}"
    if row["evidence"] not in EVIDENCE:
        return f"evidence must be one of {', '.join(EVIDENCE)}, not {row['evidence']!r}"
    if not row["source"]:
        return "every published figure needs its source"
    if row["protocol"] not in protocols:
        return f"there is no protocol {row['protocol']!r}; use a name of `refbench list protocols`, or {UNKNOWN!r}"
    if not row["protocol_note"]:
        return "protocol_note is empty; say where the evaluator is, or why it is not known"
    return "" if row["metric_id"] else "metric_id is empty; write 'unclear' where the source does not say"


def published_results() -> pd.DataFrame:
    """The published results that come with refbench, with PUBLISHED_COLUMNS and the column `dataset`."""
    frame = read_published(project_data("leaderboards") / "published")
    return frame.assign(dataset=[DATASET_OF_BENCHMARK.get(b, b) for b in frame["benchmark"]])


def published_on(address: str) -> pd.DataFrame:
    """The published results on a split, for example "refcoco/val"; empty if there are none."""
    dataset, _, split = address.partition("/")
    frame = published_results()
    return frame[(frame["dataset"] == dataset) & (frame["split"] == split)]


def rules_on(address: str) -> dict[str, Protocol]:
    """The protocols of the published results on a split, and `refbench`, by name."""
    names = [name for name in dict.fromkeys([*published_on(address)["protocol"], REFBENCH.name]) if name != UNKNOWN]
    return {name: rule for name in names if isinstance(rule := load("protocols", name), Protocol)}


def metric_of(rule: Protocol, metric_id: str) -> str | None:
    """The metric of a protocol that a published figure is compared with; None if the protocol does not have it.

    Example:
        >>> from refbench.plugins.loading import load
        >>> metric_of(load("protocols", "lavt-480"), "ciou"), metric_of(load("protocols", "cris"), "miou")
        ('overall IoU', 'IoU')
    """
    exception = EXCEPTIONS.get((rule.name, metric_id))
    names = (exception,) if exception else NAMES_OF_METRIC.get(metric_id, ())
    return next((name for name in names if name in rule.metrics), None)
