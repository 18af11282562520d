"""`refbench curate apply`, `diff`, `why`: a ledger becomes the next version of a dataset, and what that changes."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from refbench.curation.decisions import CURATION_FILE, load_items, open_curation, read_proposals
from refbench.curation.items import ImageItems, TargetMask, mask_id_of
from refbench.curation.ledger import CHANGED, LEDGER_FILE, MASK, Row, apply_ledger, read_ledger
from refbench.curation.review.answers import REVIEW_FILE, Answer, Reviews
from refbench.curation.tables import read_findings
from refbench.datasets.builders.base import Built, source_of, staging_folder, write_dataset
from refbench.errors import DatasetError, RunError
from refbench.masks.batches import COLUMNS
from refbench.masks.counting import count_codes, pair_counts
from refbench.masks.mask import Mask
from refbench.plugins import available
from refbench.records import Estimate, Finding, Proposal, Sample
from refbench.reports.overlays import PREDICTION_RGB, TARGET_RGB, Layer, box_around, overlay, picture_of
from refbench.runs.plan import shard_paths
from refbench.runs.runner import read_run
from refbench.scoring.counting import count
from refbench.scoring.counts import ScoreTable
from refbench.scoring.protocols.base import Evidence, summarise
from refbench.scoring.protocols.exact import REFBENCH
from refbench.storage.files import read_table
from refbench.storage.manifest import dataset_folder, parse_address, read_manifest, split_fingerprint
from refbench.storage.predictions import predictions_from_table
from refbench.storage.samples import load_objects, load_samples

BUILDER, BUILDER_VERSION = "curated", 1
# How far a mask has moved: the least IoU of each kind of change.
KINDS = ((0.9, "border"), (0.5, "shape"), (0.0, "another object"))
HEADLINES = ("cumulative_iou", "mean_iou", "mean_boundary_iou")
WHY_PX = 420


def apply(
    address: str, ledger_path: Path, name: str = "", *, accept_edits: bool = False, replace: bool = False
) -> dict[str, Any]:
    """Build the split that a ledger makes of its source; returns the manifest of the new dataset.

    Needs neither model nor image nor network, and gives the same bytes from the same source and ledger.

    Args:
        name: of the new dataset; by default the source's with `-curated`.
        accept_edits: take a ledger whose rows were changed after refbench wrote them; the manifest says so.
        replace: also put it in the place of a dataset of that name that was made of something else.

    Raises:
        DatasetError: the ledger is of another source, damaged or edited, or the name is taken by a published dataset,
            by the source, or by one that was not made of this source split.
    """
    if ledger_path.is_dir():
        ledger_path = ledger_path / LEDGER_FILE
    ledger = read_ledger(ledger_path)
    dataset, split = parse_address(address)
    name = name or f"{dataset}-curated"
    if name == dataset:
        raise DatasetError(f"{name} is the source itself; choose another name with --as")
    if name in available("builders"):
        raise DatasetError(f"{name} is the name of a published dataset; choose another one with --as")
    _check_replaced(name, address, replace)
    if ledger.address != address or ledger.fingerprint != split_fingerprint(address):
        raise DatasetError(
            f"{ledger_path} is a ledger of {ledger.address} (fingerprint {ledger.fingerprint[:12]}...), not of this "
            f"build of {address} ({split_fingerprint(address)[:12]}...); build that source, or decide anew"
        )
    if ledger.edited and not accept_edits:
        raise DatasetError(
            f"{ledger_path} was changed after refbench wrote it (its rows do not add up to the sha256 that it holds); "
            "get the original, put the decision into `refbench curate review`, or pass --accept-edits to vouch for it"
        )
    objects = load_objects(dataset)
    samples, left = apply_ledger(load_samples(address), objects, ledger, name, str(ledger_path))
    source = read_manifest(dataset)
    notes = [
        f"made of {address}, fingerprint {ledger.fingerprint}",
        f"by the recipe {ledger.recipe}, sha256 {ledger.recipe_sha256}",
        *(["the ledger was edited by hand"] if ledger.edited else []),
    ]
    built = Built(
        BUILDER, BUILDER_VERSION, {split: samples}, left, [source_of(ledger_path)],
        str(source.get("licence", "")), notes,
        str(source.get("image_ids", "coco")), str(source.get("annotation_ids", "coco")),
    )  # fmt: skip
    if not samples:
        raise DatasetError(
            f"{ledger_path} drops every expression of {address}: review what waits, or decide by another recipe"
        )
    with staging_folder(name) as staging:
        shutil.copyfile(ledger_path, staging / LEDGER_FILE)
        options = {"source": address, "source_fingerprint": ledger.fingerprint}
        return write_dataset(name, built, staging, options)


def _check_replaced(name: str, address: str, replace: bool) -> None:
    """Raise DatasetError if a dataset of this name is there and is more than an older version of the new one."""
    if replace or not dataset_folder(name).exists():
        return
    manifest = read_manifest(name)
    builder = manifest.get("builder", {})
    same = builder.get("name") == BUILDER and builder.get("options", {}).get("source") == address
    if not same:
        there = ", ".join(sorted(manifest["splits"])) or "no splits"
        raise DatasetError(
            f"{name} is there already ({there}) and was not made of {address}; choose another name with --as, or pass "
            "--replace to lose it"
        )


@dataclass(frozen=True, slots=True)
class MaskChange:
    """A mask in two versions; `kind` is "same", a kind of KINDS, "dropped" or "added".

    The IoUs of a mask that only one version has are NaN.
    """

    item: str
    image_id: str
    kind: str
    iou: float
    boundary_iou: float
    first: Mask | None
    second: Mask | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A run's metrics in percent: on the first version, on its samples that are left, and on these with new masks."""

    name: str
    first: Mapping[str, Estimate]
    left: Mapping[str, Estimate]
    second: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Diff:
    """What distinguishes two versions of a split. `expressions` counts those kept, dropped, added and reworded."""

    first: str
    second: str
    masks: tuple[MaskChange, ...]
    expressions: Mapping[str, int]
    runs: tuple[Ranked, ...] = field(default=())

    def kinds(self) -> dict[str, int]:
        """How many masks changed in which way."""
        found = Counter(m.kind for m in self.masks)
        return {k: found.get(k, 0) for k in ("same", *(name for _, name in KINDS), "dropped", "added")}

    def ranking(self, which: str, metric: str) -> list[str]:
        """Names of the runs, best first, by a metric on `first`, `left` or `second`."""
        return [r.name for r in sorted(self.runs, key=lambda r: -getattr(r, which)[metric].value)]


def diff(first: str, second: str, runs: Sequence[Path] = ()) -> Diff:
    """Compare two versions of a split mask by mask, and rescore runs of the first one on the second.

    Items are the same if they have the same annotations and numbers, whatever the dataset is called. Between the whole
    first version and the second lies a step that tells two effects apart: the first one's masks, but only for the
    expressions that are left.

    Raises:
        DatasetError: a split is not built, or the two share no expression.
        RunError: a run is not of the first version.
    """
    before, after = load_samples(first), load_samples(second)
    old, new = ({_key(s.sample_id): s for s in samples} for samples in (before, after))
    if not old.keys() & new.keys():
        raise DatasetError(f"{first} and {second} share no expression: they are no versions of one split")
    both = [k for k in old if k in new]
    expressions = {
        "kept": len(both),
        "dropped": len(old) - len(both),
        "added": len(new.keys() - old.keys()),
        "reworded": sum(old[k].expression != new[k].expression for k in both),
    }
    ranked = tuple(_rescored(path, first, new) for path in runs)
    names = Counter(r.name for r in ranked)
    ranked = tuple(
        r if names[r.name] == 1 else dataclasses.replace(r, name=f"{r.name} ({path})")
        for r, path in zip(ranked, runs, strict=True)
    )
    return Diff(first, second, tuple(_mask_changes(before, after)), expressions, ranked)


def _key(item_id: str) -> str:
    """An id without its dataset and split."""
    return item_id.split("/", 2)[-1]


def _mask_changes(before: Sequence[Sample], after: Sequence[Sample]) -> list[MaskChange]:
    old, new = ({_key(mask_id_of(s)): s for s in samples if not s.no_target} for samples in (before, after))
    both = [k for k in old if k in new]
    for k in both:
        if old[k].target.size != new[k].target.size:
            raise DatasetError(f"{k} has two sizes in the two versions: they are of different images")
    counts = pair_counts([old[k].target for k in both], [new[k].target for k in both])
    out = {}
    for k, inter, union, b_inter, b_union in zip(
        both, *(counts[n].tolist() for n in ("intersection", "union", "boundary_intersection", "boundary_union")),
        strict=True,
    ):  # fmt: skip
        iou, boundary = (a / b if b else 1.0 for a, b in ((inter, union), (b_inter, b_union)))
        kind = "same" if old[k].target == new[k].target else next(name for least, name in KINDS if iou >= least)
        out[k] = MaskChange(k, old[k].image_id, kind, iou, boundary, old[k].target, new[k].target)
    changes = []
    for k, sample in old.items():
        nan = float("nan")
        changes.append(out.get(k) or MaskChange(k, sample.image_id, "dropped", nan, nan, sample.target, None))
    for k, sample in new.items():
        if k not in old:
            changes.append(MaskChange(k, sample.image_id, "added", float("nan"), float("nan"), None, sample.target))
    return changes


def _rescored(folder: Path, first: str, new: Mapping[str, Sample]) -> Ranked:
    info = read_run(folder)
    address = f"{info['dataset']}/{info['split']}"
    if address != first:
        raise RunError(f"{folder} is a run on {address}; `diff` wants runs on {first}, the first version")
    counted = count(folder, first, info, [], [])
    whole = counted.scores
    ids = whole.sample_ids()
    rows = np.array([k for k, sample_id in enumerate(ids) if _key(sample_id) in new], np.int64)
    if not len(rows):
        raise RunError(f"{folder} answers no expression that is left")
    left = whole.take(rows)
    masks = {p.sample_id: p.mask for path in shard_paths(folder) for p in predictions_from_table(read_table(path))}
    chosen = [ids[k] for k in rows.tolist()]
    targets = [new[_key(i)].target for i in chosen]
    counts = count_codes(
        [masks[i].counts for i in chosen], [t.counts for t in targets],
        np.array([t.height for t in targets]), np.array([t.width for t in targets]),
    )  # fmt: skip
    columns: dict[str, Any] = {n: np.ascontiguousarray(counts[:, k]) for k, n in enumerate(COLUMNS)}
    second = dataclasses.replace(left, **columns)
    name = _run_name(info)
    return Ranked(name, *(_headlines(t) for t in (whole, left, second)))


def _run_name(info: Mapping[str, Any]) -> str:
    options = ",".join(f"{k}={v}" for k, v in sorted(dict(info.get("adapter_options") or {}).items()))
    return f"{info['adapter']} {options}".strip()


def _headlines(scores: ScoreTable) -> dict[str, Estimate]:
    metrics = summarise(REFBENCH, Evidence(scores)).metrics
    return {name: metrics[name] for name in HEADLINES}


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of one mask or expression: its row, what the audit found, what was proposed and answered."""

    row: Row
    findings: tuple[Finding, ...]
    proposals: tuple[Proposal, ...]
    answers: tuple[Answer, ...]
    image: ImageItems | None
    target: TargetMask | None
    expression: str


def why(item_id: str, place: Path) -> Story:
    """The story of one item, from a folder of a curation, a ledger, or a dataset that was made of one.

    Raises:
        DatasetError: no such item; the message has some that are like it.
    """
    folder = place if place.is_dir() else place.parent
    ledger = read_ledger(place)
    rows = ledger.by_id()
    if item_id not in rows:
        like = [i for i in rows if item_id.split("/")[-1] in i.split("/")][:3]
        hint = f"; did you mean {', '.join(like)}?" if like else ""
        raise DatasetError(f"{place} says nothing about {item_id!r}{hint}")
    row = rows[item_id]
    whole = (folder / CURATION_FILE).is_file()
    if whole:
        open_curation(folder)
    findings = tuple(f for f in read_findings(folder) if f.item_id == item_id) if whole else ()
    try:
        images = load_items(ledger.address)
    except DatasetError:
        images = []  # the source is not built here: its row is still known
    image = next((i for i in images if i.image_id == row.image_id), None)
    target, expression = _item(image, row)
    proposals = tuple(read_proposals(folder).get(target.mask_id, ())) if whole and target is not None else ()
    review = folder / REVIEW_FILE
    answers = tuple(Reviews(review).standing().get(item_id, ())) if review.is_file() else ()
    return Story(row, findings, proposals, answers, image, target, expression)


def _item(image: ImageItems | None, row: Row) -> tuple[TargetMask | None, str]:
    if image is None:
        return None, ""
    if row.item == MASK:
        return next((t for t in image.masks if t.mask_id == row.item_id), None), ""
    sample = next((s for s in image.samples if s.sample_id == row.item_id), None)
    if sample is None:
        return None, ""
    target = next((t for t in image.masks if t.mask_id == mask_id_of(sample)), None) if not sample.no_target else None
    return target, sample.expression


def story_picture(story: Story) -> Image.Image | None:
    """The mask before (green) and, beside it, what became of it (pink) with the old outline; None without a mask."""
    if story.image is None or story.target is None:
        return None
    source = story.target.mask
    new = story.row.mask if story.row.action == CHANGED else source
    picture = picture_of(story.image.image_path, story.image.height, story.image.width)
    box = box_around(source.union(new or source))
    before = overlay(picture, [Layer(source, TARGET_RGB, filled=True)], WHY_PX, box)
    after = overlay(
        picture, [Layer(new or source, PREDICTION_RGB, filled=True), Layer(source, TARGET_RGB)], WHY_PX, box
    )
    sheet = Image.new("RGB", (before.width + after.width + 8, before.height), "white")
    sheet.paste(before, (0, 0))
    sheet.paste(after, (before.width + 8, 0))
    return sheet


def changes_table(found: Diff) -> pd.DataFrame:
    """One row a mask: item, image_id, kind, iou, boundary_iou."""
    rows = [(m.item, m.image_id, m.kind, m.iou, m.boundary_iou) for m in found.masks]
    return pd.DataFrame(rows, columns=["item", "image_id", "kind", "iou", "boundary_iou"])
