"""Samples, runs and protocols as DataFrames, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refbench.errors import DatasetError, RunError
from refbench.masks.pairs import COUNTS
from refbench.records import Summary
from refbench.reports.diagnosis import Diagnosis, facts_of
from refbench.reports.error_kinds import ERRORS, KINDS, ErrorTable, attribute
from refbench.reports.names import system_name
from refbench.reports.recomputation import scored_folders
from refbench.reports.slices import labels_of
from refbench.runs.folder import RunFolder
from refbench.scoring.counting import count
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.exact import sample_boundary_iou, sample_iou
from refbench.scoring.results import SUMMARY_FILE, read_result, read_summary
from refbench.scoring.scorer import ALL, Scored, choose_protocols
from refbench.scoring.sources import has_predictions, is_scored, open_source, score_under
from refbench.storage.manifest import split_fingerprint
from refbench.storage.samples import sample_table

_ABOUT = ("image_id", "ref_id", "expression", "category", "height", "width", "tags")


def samples_frame(source: Any, dataset: str | None = None, *, errors: bool = True) -> pd.DataFrame:
    """One row per sample of a run or of predictions: the expression, the counts, the IoU and the error.

    Args:
        source: as for `score`; also what `score` or `diagnose` returned, which is faster. What `score` returned, and
            a scored folder without predictions, have no `error`.
        dataset: as for `score`.
        errors: whether to find the kind of error of each sample, which takes most of the time.

    Returns:
        A DataFrame in the order of the split, with these columns:

        * `sample_id`, `image_id`, `ref_id`, `expression`, `category`, `height`, `width`, `tags`;
        * `failed`, `missing` (no prediction at all), `no_target`, `predicted_no_target`;
        * `iou` and `boundary_iou`, between 0 and 1, under the protocol `refbench`;
        * `intersection`, `union`, `prediction_area`, `target_area`, `boundary_intersection`, `boundary_union` (pixels);
        * `error`: the kind that costs the sample most, see `refbench diagnose`, "" if nothing is wrong;
        * one column per kind of error with its pixels, for example `boundary_px`;
        * one column per dimension of slices, for example `target_size` and `look_alikes`.

    Raises:
        PredictionError: as for `score`.
        RunError: as for `score`.

    Example:
        >>> from refbench import run, samples_frame
        >>> frame = samples_frame(run("everything", "snapshots/test").folder)
        >>> len(frame), frame.groupby("error")["iou"].mean().round(2).to_dict()
        (87, {'false_alarm': 0.0, 'merged': 0.12, 'spill': 0.05, 'wrong_object': 0.01})
    """
    if isinstance(source, (Diagnosis, Scored)) and source.fingerprint != split_fingerprint(source.address):
        raise DatasetError(f"{source.address} was built again after it was scored; score the predictions again")
    if isinstance(source, Diagnosis):
        return _frame(source.address, source.scores, None, source.errors if errors else None)
    if isinstance(source, Scored):
        return _frame(source.address, source.scores, source.missing_rows, None)
    found = None
    if isinstance(source, (str, Path)) and is_scored(Path(source)) and not has_predictions(Path(source)):
        result = read_result(Path(source))
        if result.scores is None:
            raise RunError(f"{source} contains no counts of its samples; run `refbench score` again")
        address, scores, missing = dataset or result.address, result.scores, None
    else:
        address, answers = open_source(source, dataset)
        counted = count(answers, address, [], [ERRORS] if errors else [])
        scores, missing = counted.scores, counted.missing_rows
        found = attribute(scores, counted.measured) if errors else None
    return _frame(address, scores, missing, found)


def _frame(address: str, scores: ScoreTable, missing: Any, errors: ErrorTable | None) -> pd.DataFrame:
    ids = scores.sample_ids()
    table = sample_table(address).set_index("sample_id")
    unknown = next((i for i in ids if i not in table.index), None)
    if unknown is not None:
        raise DatasetError(
            f"the local build of {address} has no sample {unknown!r}; build the version that the predictions are for"
        )
    about = table.loc[ids]
    columns: dict[str, Any] = {"sample_id": ids}
    columns |= {name: about[name].to_numpy() for name in _ABOUT}
    columns["failed"] = scores.failed
    columns["missing"] = np.full(len(ids), pd.NA, object) if missing is None else missing
    columns |= {name: getattr(scores, name) for name in ("no_target", "predicted_no_target")}
    columns |= {"iou": sample_iou(scores), "boundary_iou": sample_boundary_iou(scores)}
    columns |= {name: getattr(scores, name) for name in COUNTS}
    if errors is not None:
        columns["error"] = errors.names()
        columns |= {f"{kind}_px": errors.pixels[:, k] for k, kind in enumerate(KINDS)}
    labels = labels_of(facts_of(address, scores))
    columns |= {
        name.replace(" ", "_").replace("-", "_"): found.texts() for name, found in labels.items() if name != "category"
    }
    return pd.DataFrame(columns)


_FIGURES = ("metric", "value", "low", "high")


def runs_frame(folders: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """The figures of all scored runs in a folder and its subfolders, as they stand in their summary.json.

    Args:
        folders: a folder, for example "~/.refbench/runs", or several.

    Returns:
        A DataFrame with one row per run, protocol and metric: `system`, `dataset`, `split`, `fingerprint`, `protocol`,
        `metric`, `value`, `low`, `high` (percent), `samples`, `failures`, `missing`, `finished` (UTC) and `folder`.

    Raises:
        RunError: no scored run is found, or a summary.json is damaged.

    Example:
        >>> from refbench import run, runs_frame, score
        >>> folder = run("everything", "snapshots/test").folder
        >>> scored = score(folder)
        >>> runs_frame(folder).pivot(index="system", columns="metric", values="value")["mean_iou"].round(2).to_dict()
        {'everything': 5.36}
    """
    given = [folders] if isinstance(folders, (str, Path)) else list(folders)
    places = scored_folders(Path(folder).expanduser() for folder in given)
    if not places:
        raise RunError(f"no scored run in {', '.join(map(str, given))}; run `refbench score` first")
    rows: list[dict[str, Any]] = []
    for place in places:
        content = read_summary(place / SUMMARY_FILE)
        info = RunFolder(place).info if RunFolder(place).is_there else None
        about = {
            "system": place.name if info is None else system_name(info),
            "dataset": content.dataset,
            "split": content.split,
            "fingerprint": content.fingerprint,
        }
        end = {
            "samples": content.samples,
            "failures": content.failures,
            "missing": content.missing,
            "finished": "" if info is None else info.finished,
            "folder": str(place),
        }
        for protocol, entry in content.protocols.items():
            summary = entry.summary(protocol, content.failures)
            rows += [{**about, "protocol": protocol, **figures, **end} for figures in _figures(summary)]
    return pd.DataFrame(rows)


def protocols_frame(source: Any, dataset: str | None = None, *, interval: str = "percentile") -> pd.DataFrame:
    """The figures of one run or of predictions under every protocol that can be applied to its split.

    Args:
        source: as for `score`; nothing is written.
        dataset: as for `score`.
        interval: as for `score`.

    Returns:
        A DataFrame with one row per protocol and metric: `protocol`, `metric`, `value`, `low`, `high` (percent),
        `samples` that the protocol counts, and `headline`, which is true for the metric that papers quote.

    Raises:
        PredictionError: as for `score`.
        RunError: as for `score`.

    Example:
        >>> from refbench import protocols_frame, run
        >>> frame = protocols_frame(run("everything", "snapshots/test").folder)
        >>> frame[frame["headline"]].set_index("protocol")["value"].round(2)[["refbench", "cris", "glamm-3"]].to_dict()
        {'refbench': 5.48, 'cris': 5.36, 'glamm-3': 6.83}
    """
    address, answers = open_source(source, dataset)
    rules, _ = choose_protocols([ALL], address)
    _, summaries = score_under(rules, answers, address, interval)
    rows = []
    for rule in rules:
        summary = summaries[rule.name]
        for figures in _figures(summary):
            headline = figures["metric"] == rule.headline
            rows.append({"protocol": rule.name, **figures, "samples": summary.samples, "headline": headline})
    return pd.DataFrame(rows, columns=["protocol", *_FIGURES, "samples", "headline"])


def _figures(summary: Summary) -> list[dict[str, Any]]:
    return [{"metric": metric, "value": e.value, "low": e.low, "high": e.high} for metric, e in summary.metrics.items()]
