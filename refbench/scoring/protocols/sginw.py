"""SGinW (Segmentation in the Wild): AP of 25 sets, their mean and their median, from the files of a submission."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from refbench.errors import PredictionError
from refbench.plugins.table import SGINW as SETS
from refbench.scoring.protocols.average_precision import COCO_AP, Evaluation, score_detections
from refbench.scoring.protocols.coco_files import read_annotations
from refbench.storage.files import check_is_file, read_json
from refbench.storage.progress import Progress, silent

# X-Decoder's evaluation wants an underscore; sam-hq writes a hyphen.
RESULTS = re.compile(r"seginw[_-](.+)_val\.json")
GROUND_TRUTH = "{name}/valid/_annotations_min1cat.coco.json"
MOST_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class SetsProtocol:
    """A protocol for several sets, each with its own results and annotation file.

    `evaluate` takes the folder with the annotation files of all sets and the results (a folder or a zip file). It
    returns the metrics with the names of the original, and the sets for which there are no results.
    """

    name: str
    summary: str
    source: str
    caveats: tuple[str, ...]
    evaluate: Callable[[Path, Path, Progress], tuple[Evaluation, list[str]]]


def evaluate_sginw(ground_truth: Path, results: Path, progress: Progress = silent) -> tuple[Evaluation, list[str]]:
    """Returns the AP of each set by its name, followed by "Average Score" and "Median Score", and the names of the
    missing sets.

    Raises:
        PredictionError: there are no results, a file belongs to no set, or an entry cannot be scored.
        DatasetError: the annotation file of a set is missing or invalid.
    """
    with _files(results) as found:
        if not found:
            raise PredictionError(
                f"{results} contains no file seginw_<name>_val.json; a submission contains one such file of COCO "
                "results per set"
            )
        metrics: dict[str, float] = {}
        notes: list[str] = []
        for done, (name, path) in enumerate(found.items()):
            one = _average_precision(ground_truth / GROUND_TRUTH.format(name=name), path)
            metrics[name] = one.metrics["AP"]
            notes += [f"{name}: {note}" for note in one.notes]
            progress("sets", done + 1, len(found))
    values = list(metrics.values())
    # As in the original: a set without a value leaves the scores without one.
    whole = not any(map(math.isnan, values))
    metrics["Average Score"] = statistics.fmean(values) if whole else math.nan
    metrics["Median Score"] = statistics.median(values) if whole else math.nan
    return Evaluation(metrics, tuple(notes)), [name for name in SETS if name not in metrics]


def _average_precision(ground_truth: Path, results: Path) -> Evaluation:
    truth = read_annotations(ground_truth)
    if read_json(results, PredictionError) == []:
        # detectron2 has no evaluation of an empty list, and no value for it.
        return Evaluation({"AP": math.nan})
    return score_detections([truth], results, [COCO_AP])[COCO_AP.name]


@contextmanager
def _files(results: Path) -> Iterator[dict[str, Path]]:
    """The results file of each set, by the name of the set, sorted. Files in a zip file are unpacked temporarily."""
    if results.is_dir():
        yield _by_set(results, sorted(results.rglob("*.json")))
        return
    if not results.exists():
        raise PredictionError(f"{results} does not exist")
    check_is_file(results, PredictionError)
    try:
        with zipfile.ZipFile(results) as archive, tempfile.TemporaryDirectory() as folder:
            places = []
            for member in archive.infolist():
                # Only the last part of a name counts, so no member can be written elsewhere.
                name = Path(member.filename).name
                if member.is_dir() or not name.endswith(".json"):
                    continue
                if member.file_size > MOST_BYTES:
                    raise PredictionError(
                        f"{results}: {member.filename} would decompress to {member.file_size} bytes, which is too much"
                    )
                place = Path(folder) / name
                if place.exists():
                    raise PredictionError(f"{results} contains {name} twice; keep only one")
                place.write_bytes(archive.read(member))
                places.append(place)
            yield _by_set(results, sorted(places))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise PredictionError(
            f"{results} is neither a folder of results nor a readable zip file of such a folder: {error}"
        ) from None


def _by_set(results: Path, paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        match = RESULTS.fullmatch(path.name)
        if match is None or match[1] not in SETS:
            raise PredictionError(
                f"{results}: {path.name} belongs to none of the 25 sets; the files must be named "
                f"seginw_<name>_val.json, where <name> is one of {', '.join(SETS)}"
            )
        if match[1] in found:
            raise PredictionError(f"{results} contains two files for {match[1]}; keep only one")
        found[match[1]] = path
    return found


SGINW = SetsProtocol(
    "sginw",
    "segm AP of each of 25 sets, their mean and their median",
    "microsoft/X-Decoder, branch seginw, eval_with_json/main.py (165f8a6)",
    (
        "the mean and the median are over the sets that are there: a submission that lacks a hard set scores higher",
        "an empty list of detections has no AP in the original, and leaves the mean without a value",
    ),
    evaluate_sginw,
)
