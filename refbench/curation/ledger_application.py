"""Applies a ledger to its source split. This needs no model, images, network or random numbers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refbench.curation.items import mask_id_of
from refbench.curation.ledger import (
    ADDED,
    CROWD,
    DROPPED,
    EXPRESSION,
    GONE,
    MASK,
    MERGED,
    MOVED,
    Ledger,
    Row,
    mask_sha256,
    text_sha256,
)
from refbench.errors import DatasetError, summarise_problems
from refbench.masks.mask import Mask
from refbench.records import AnnotatedObject, Sample
from refbench.storage.files import home
from refbench.storage.manifest import dataset_folder

_TAG = "curated"


@dataclass(frozen=True, slots=True)
class _Target:
    """A mask of the result: what the samples that refer to it get."""

    ann_ids: tuple[str, ...]
    category: str
    mask: Mask


def apply_ledger(
    samples: Sequence[Sample], objects: Sequence[AnnotatedObject], ledger: Ledger, dataset: str, where: str
) -> tuple[list[Sample], list[AnnotatedObject]]:
    """The split and the objects that result from applying a ledger to its source, under the name `dataset`.

    A changed mask gets a new box and loses its polygons; its samples get the tag `curated`, as do samples that were
    moved or added. In the remaining images, all annotated objects are kept, because they are needed as distractors. If
    the new mask of an object is known, it replaces the old mask. Added samples come last.

    Raises:
        DatasetError: the ledger is for another source, because items are missing, unknown or different. `where` names
            the ledger in the message.
    """
    rows = ledger.by_id()
    _check_items(samples, objects, rows, ledger, where)
    targets = _targets(samples, rows)
    kept = []
    for sample in samples:
        row = rows[sample.sample_id]
        if row.action == DROPPED:
            continue
        if sample.no_target:
            kept.append(_in_dataset(sample, dataset))
            continue
        mask_id = _final_mask(row, rows[mask_id_of(sample)])
        if mask_id is None:
            continue
        same = mask_id == mask_id_of(sample) and rows[mask_id].mask is None
        changed = sample if same else _changed(sample, targets[mask_id])
        kept.append(_in_dataset(_moved(changed) if row.action == MOVED else changed, dataset))
    first = {s.image_id: s for s in reversed(samples)}
    added = [row for row in ledger.rows if (row.item, row.action) == (EXPRESSION, ADDED)]
    kept += [_in_dataset(_added(row, first[row.image_id], targets[row.into]), dataset) for row in added]
    return kept, _objects(objects, {s.image_id for s in kept}, ledger, targets)


def _targets(samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, _Target]:
    """The masks to which the samples of the result can refer, by id."""
    out = {}
    for sample in samples:
        if not sample.no_target and (row := rows[mask_id_of(sample)]).action not in GONE:
            out[row.item_id] = _Target(sample.ann_ids, sample.category, row.mask or sample.target)
    for row in rows.values():
        if (row.item, row.action) == (MASK, ADDED) and row.mask is not None:
            out[row.item_id] = _Target((_ann_id(row.item_id),), row.category, row.mask)
    return out


def _final_mask(expression: Row, mask: Row) -> str | None:
    """The id of the mask to which an expression refers in the result; None if it is gone."""
    if expression.action == MOVED:
        return expression.into
    if mask.action == MERGED:
        return mask.into
    return None if mask.action in GONE else mask.item_id


def _changed(sample: Sample, target: _Target) -> Sample:
    return dataclasses.replace(
        sample, target=target.mask, ann_ids=target.ann_ids, category=target.category, polygons=(),
        box_xywh=target.mask.box_xywh, tags=tuple(dict.fromkeys((*sample.tags, _TAG))),
    )  # fmt: skip


def _moved(sample: Sample) -> Sample:
    """A sample that now refers to another mask than the other expressions of its ref, so it needs a ref of its own."""
    ref_id = f"{sample.ref_id}-{'+'.join(sample.ann_ids)}"
    return dataclasses.replace(sample, ref_id=ref_id, sample_id=f"{sample.address}/{ref_id}/{sample.sent_id}")


def _added(row: Row, neighbour: Sample, target: _Target) -> Sample:
    """The sample of an added expression; `neighbour` is a sample of the same image."""
    ref_id, sent_id = row.item_id.split("/", 2)[2].rsplit("/", 1)
    return dataclasses.replace(
        neighbour, sample_id=row.item_id, expression=row.expression, raw_expression=row.expression, ref_id=ref_id,
        sent_id=sent_id, ann_ids=target.ann_ids, category=target.category, target=target.mask, no_target=False,
        polygons=(), box_xywh=target.mask.box_xywh, tags=(_TAG,),
    )  # fmt: skip


def _objects(
    objects: Sequence[AnnotatedObject], images: set[str], ledger: Ledger, targets: Mapping[str, _Target]
) -> list[AnnotatedObject]:
    rows = {_ann_id(row.item_id): row for row in ledger.rows if row.item == MASK}
    out = []
    for found in objects:
        if found.image_id not in images:
            continue
        row = rows.get(found.ann_id)
        if row is not None and row.action == MERGED:
            continue
        if row is not None and row.action == CROWD:
            found = dataclasses.replace(found, crowd=True)
        elif row is not None and row.mask is not None:
            found = dataclasses.replace(found, mask=row.mask, polygons=(), box_xywh=row.mask.box_xywh)
        out.append(found)
    for row in ledger.rows:
        if (row.item, row.action) == (MASK, ADDED) and row.image_id in images:
            target = targets[row.item_id]
            out.append(
                AnnotatedObject(
                    target.ann_ids[0], row.image_id, target.category, False, target.mask, (), target.mask.box_xywh
                )
            )
    return out


def _ann_id(mask_id: str) -> str:
    """The annotation id of a mask; several ids joined by + are no id of an object."""
    return mask_id.split("/", 2)[2]


def _in_dataset(sample: Sample, dataset: str) -> Sample:
    """Put the name of the new dataset into a sample.

    An image path inside the home folder becomes relative to it, so that the home folder can be moved.
    """
    path = sample.image_path
    inside = home().resolve() / "datasets"
    if path and Path(path).resolve().is_relative_to(inside):
        path = Path(os.path.relpath(Path(path).resolve(), dataset_folder(dataset).resolve())).as_posix()
    rest = sample.sample_id.split("/", 1)[1]
    return dataclasses.replace(sample, sample_id=f"{dataset}/{rest}", image_path=path)


def _check_items(
    samples: Sequence[Sample],
    objects: Sequence[AnnotatedObject],
    rows: Mapping[str, Row],
    ledger: Ledger,
    where: str,
) -> None:
    problems = []
    expected: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    images: dict[str, tuple[int, int]] = {}
    image_of: dict[str, str] = {}
    for sample in samples:
        expected[sample.sample_id] = text_sha256(sample.expression)
        image_of[sample.sample_id] = sample.image_id
        images[sample.image_id] = (sample.height, sample.width)
        if not sample.no_target and (mask_id := mask_id_of(sample)) not in expected:
            expected[mask_id] = mask_sha256(sample.target)
            image_of[mask_id] = sample.image_id
            sizes[mask_id] = sample.target.size
    for item_id, digest in expected.items():
        row = rows.get(item_id)
        kind = MASK if item_id in sizes else EXPRESSION
        if row is not None and row.item != kind:
            problems.append(f"{item_id} is a row about a {row.item}, it is a {kind}")
        elif row is None:
            problems.append(f"{item_id} of the source is not in the ledger")
        elif row.action == ADDED:
            problems.append(f"{item_id} is already in the source, so it cannot be added")
        elif row.image_id != image_of[item_id]:
            problems.append(f"{item_id} is on the image {image_of[item_id]}, not on {row.image_id}")
        elif row.source_sha256 != digest:
            problems.append(f"{item_id} has changed since the ledger was written")
        elif row.mask is not None and row.mask.size != sizes[item_id]:
            problems.append(f"{item_id}: its new mask is {row.mask.size}, the image {sizes[item_id]}")
    taken = {o.ann_id for o in objects} | {s.ref_id for s in samples}
    problems += _wrong_additions(rows, images, taken, ledger.address)
    problems += [f"{i} is not in the source" for i, row in rows.items() if i not in expected and row.action != ADDED]
    if problems:
        raise DatasetError(
            f"{where} belongs to another build of {ledger.address}: {len(problems)} items differ.\n"
            f"{summarise_problems(problems)}\n"
            f"Build the version that the ledger was made for (fingerprint {ledger.fingerprint[:12]}...)."
        )


def _wrong_additions(
    rows: Mapping[str, Row], images: Mapping[str, tuple[int, int]], taken: set[str], address: str
) -> list[str]:
    """What is wrong with added rows: their ids, their images or the sizes of their masks.

    `taken` are the ids of the objects and refs of the source.
    """
    out = []
    for item_id, row in rows.items():
        if row.action != ADDED:
            continue
        parts = item_id.split("/")
        if "/".join(parts[:2]) != address or len(parts) != (3 if row.item == MASK else 4) or not all(parts):
            out.append(f"{item_id} is not an id of a {row.item} in {address}")
        elif parts[2] in taken:
            out.append(f"{item_id}: the source has an object or a ref {parts[2]} already")
        elif row.image_id not in images:
            out.append(f"{item_id}: the image {row.image_id} is not in the source")
        elif row.mask is not None and row.mask.size != images[row.image_id]:
            out.append(f"{item_id}: its mask is {row.mask.size}, the image {images[row.image_id]}")
    return out
