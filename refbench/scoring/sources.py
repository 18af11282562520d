"""What can be scored, compared and shown: a run folder, a scored folder, or a file or folder of predictions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from refbench.errors import MaskError, PredictionError, RunError
from refbench.masks.mask import Mask
from refbench.records import Prediction, Summary
from refbench.runs.folder import RunFolder
from refbench.scoring.counting import Answers, Counted, Drawing, count
from refbench.scoring.counts import SCORES_FILE
from refbench.scoring.protocols.audit import check_summary
from refbench.scoring.protocols.base import Evidence, Protocol, summarise
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.results import SUMMARY_FILE, Result, read_result
from refbench.scoring.statistics.bootstrap import PERCENTILE
from refbench.storage.given_predictions import GivenPredictions
from refbench.storage.predictions import Claims, SampleIndex
from refbench.storage.progress import Progress, silent
from refbench.storage.samples import load_questions


def open_source(source: Any, dataset: str | None) -> tuple[str, Answers]:
    """The split of a source, and the source itself: a run folder, a predictions file, or predictions in memory. A run
    must be complete and must use the current build.

    Raises:
        PredictionError: the source does not exist, or its split is not given.
        RunError: the run is on another split, not complete, or on another version of the dataset.
    """
    if not isinstance(source, (str, os.PathLike)):
        if dataset is None:
            raise PredictionError('the split of the predictions is not given; pass it, dataset="refcoco/val"')
        return dataset, GivenPredictions(source)
    source = Path(source)
    if not source.exists():
        raise PredictionError(f"{source} does not exist")
    run = RunFolder(source)
    if not run.is_there:
        if not has_predictions(source):
            raise PredictionError(
                f"{source} contains scores, but no predictions; pass the folder of the run, or the predictions"
            )
        if dataset is None:
            raise PredictionError(
                f"{source} is not a run folder; to read it as predictions, pass their split with --dataset "
                "DATASET/SPLIT"
            )
        return dataset, source
    if dataset is not None and dataset != run.info.address:
        raise RunError(f"{source} is a run on {run.info.address}, not on {dataset}")
    run.check_complete()
    return run.info.address, run


def is_scored(source: Path) -> bool:
    """Whether a source is a folder with scores, or a scores.parquet file."""
    if source.is_dir():
        return (source / SCORES_FILE).is_file() or (source / SUMMARY_FILE).is_file()
    return source.suffix == ".parquet"


def has_predictions(source: Path) -> bool:
    """Whether a source contains predictions. A folder of PNG masks may contain scores, too."""
    run = RunFolder(source.parent if source.name == SCORES_FILE else source)
    if run.is_there:
        return run.is_whole
    return not is_scored(source) or (source.is_dir() and any(source.rglob("*.png")))


def score_under(
    rules: Sequence[Protocol],
    answers: Answers,
    address: str,
    interval: str = PERCENTILE,
    progress: Progress = silent,
) -> tuple[Counted, dict[str, Summary]]:
    """Count an opened source once, and summarise it under each protocol; nothing is written."""
    drawings = [Drawing.of(rule) for rule in rules]
    measures = {m.name: m for rule in rules for m in rule.measures}
    counted = count(answers, address, drawings, list(measures.values()), progress)
    summaries = {}
    for done, rule in enumerate(rules):
        summaries[rule.name] = summarise(rule, counted.evidence(rule), interval)
        check_summary(summaries[rule.name], f"{address}, protocol {rule.name}", rule.signed)
        progress("protocols", done + 1, len(rules))
    return counted, summaries


def result_of(
    source: Any,
    dataset: str | None = None,
    progress: Progress = silent,
    *,
    rules: Sequence[Protocol] = (REFBENCH,),
) -> Result:
    """The scores of a source. If it is not scored yet, it is scored, and nothing is written.

    Args:
        source: a scored folder, a scores.parquet file, a run folder, a file or folder of predictions, or predictions in
            memory, as for `score`.
        dataset: the split of the predictions, for example "refcoco/val"; not needed for folders that state it.
        rules: the protocols for a source that is not scored yet.

    Raises:
        RunError, DatasetError: as `read_result`, or the source is of another split than `dataset`.
        PredictionError: as `open_source`, or the predictions do not match the split.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _counted(source, Path("predictions"), dataset, progress, rules)
    source = Path(source)
    if is_scored(source):
        result = read_result(source)
        if dataset is not None and result.address not in ("", dataset):
            raise RunError(f"{source} contains scores on {result.address}, not on {dataset}")
        if result.scores is not None and not result.summaries:
            summary = summarise(REFBENCH, Evidence(result.scores))
            result = dataclasses.replace(result, summaries={REFBENCH.name: summary})
        # A renamed table has nothing to do with the other files of its folder.
        return result if source.is_dir() or source.name == SCORES_FILE else dataclasses.replace(result, folder=source)
    return _counted(source, source, dataset, progress, rules)


def _counted(source: Any, folder: Path, dataset: str | None, progress: Progress, rules: Sequence[Protocol]) -> Result:
    """The result of scoring a source; `folder` names it."""
    address, answers = open_source(source, dataset)
    counted, summaries = score_under(rules, answers, address, progress=progress)
    return Result(
        folder=folder,
        run=answers.info if isinstance(answers, RunFolder) else None,
        address=address,
        fingerprint=counted.fingerprint,
        samples=len(counted.scores),
        failures=int(counted.scores.failed.sum()),
        missing=counted.missing,
        summaries=summaries,
        scores=counted.scores,
    )


def name_of(source: Path) -> str:
    """A short name for a source that states none: its file name without the ending, or the name of its folder."""
    source = source.resolve()
    return source.parent.name if source.name == SCORES_FILE else source.name if source.is_dir() else source.stem


def predictions_of(source: Path | str, address: str, wanted: Collection[str] | None = None) -> Iterator[Prediction]:
    """The predictions of a source, in its order; if `wanted` is given, only those of these samples.

    Samples without a prediction do not occur. A folder that contains only scores has no predictions.

    Raises:
        RunError, PredictionError: the predictions are damaged, or do not match the split.
    """
    source = Path(source)
    if not has_predictions(source):
        return
    run = RunFolder(source.parent if source.name == SCORES_FILE else source)
    if run.is_there:
        yield from run.predictions(wanted)
        return
    samples, _ = load_questions(address)
    for where, row, claim in Claims(source, SampleIndex.of(samples)):
        sample = samples[row]
        if wanted is not None and sample.sample_id not in wanted:
            continue
        try:
            mask = Mask(sample.height, sample.width, claim.counts)
        except MaskError as error:
            raise PredictionError(f"{where}: {error}") from None
        yield Prediction(sample.sample_id, mask, claim.score, claim.no_target, (), claim.error)
