"""Edits: changes by a person that the review page does not offer, such as merging two masks.

The edits of a curation are the lines of `edits.jsonl` in its folder, one JSON object per line. They take precedence
over the recipe and over answers on the review page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from refbench.curation.folder import load_items, open_curation
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.ledger import (
    ADDED,
    CHANGED,
    CROWD,
    DROPPED,
    EXPRESSION,
    KEPT,
    MASK,
    MERGED,
    MOVED,
    REPLACED,
    SPLIT,
    Row,
    mask_sha256,
    text_sha256,
)
from refbench.errors import DatasetError, MaskError, summarise_problems
from refbench.masks.mask import Mask
from refbench.records import Action, Cause, Decision
from refbench.storage.files import atomic_file, check_is_file
from refbench.storage.locks import PATIENCE_SECONDS, exclusive
from refbench.storage.samples import load_objects

EDITS_FILE = "edits.jsonl"
STAGE = "edit"
_MOST_BYTES = 2**28


class _Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="edit", kw_only=True):
    """What all edits have: why, by whom and when."""

    reason: str = ""
    reviewer: str = ""
    time: str = ""


class Merge(_Edit, frozen=True, tag="merge"):
    """Several masks are one object: the first becomes the union of all, or `mask`, and gets all expressions."""

    masks: tuple[str, ...]
    mask: dict[str, Any] | None = None


class Split(_Edit, frozen=True, tag="split"):
    """A mask is several objects: it becomes the first of `parts`, and the others are added.

    `expressions` maps sample ids to the number of the part that they mean, counted from 1; the others mean part 1.
    """

    mask: str
    parts: tuple[dict[str, Any], ...]
    expressions: dict[str, int] = {}


class Add(_Edit, frozen=True, tag="add"):
    """An object that is not annotated, with its expressions, if it has any."""

    image: str
    mask: dict[str, Any]
    category: str
    expressions: tuple[str, ...] = ()


class Replace(_Edit, frozen=True, tag="replace"):
    """A mask is replaced by `by`, the mask of an object in another built dataset: `<dataset>/<annotation id>`.

    `mask_sha256` identifies that mask; it is added when the edit is stored.
    """

    mask: str
    by: str
    mask_sha256: str = ""


class Crowd(_Edit, frozen=True, tag="crowd"):
    """A mask is a crowd, not one object: it stays annotated, and its expressions are dropped."""

    mask: str


Edit = Merge | Split | Add | Replace | Crowd


def read_edits(path: Path) -> list[Edit]:
    """The edits of a JSON Lines file.

    Raises:
        DatasetError: the file cannot be read, or a line is not an edit; the message names all such lines.
    """
    try:
        check_is_file(path)
        if path.stat().st_size > _MOST_BYTES:
            raise DatasetError(f"{path} is larger than {_MOST_BYTES} bytes, so it is not a file of edits")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the edits {path} cannot be read: {error}") from None
    edits, problems = [], []
    decoder: msgspec.json.Decoder[Edit] = msgspec.json.Decoder(Edit)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            edits.append(decoder.decode(line))
        except (msgspec.DecodeError, RecursionError) as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise DatasetError(
            f"{path} contains {len(problems)} lines that are not edits.\n{summarise_problems(problems)}\n"
            'Each line is a JSON object such as {"edit": "crowd", "mask": "refcoco/val/1", "reason": "a queue"}.'
        )
    return edits


def edits_of(folder: Path) -> list[Edit]:
    """The edits of a curation folder; empty if there are none."""
    path = folder / EDITS_FILE
    return read_edits(path) if path.is_file() else []


def write_edits(folder: Path, edits: Sequence[Edit], reviewer: str = "") -> list[Edit]:
    """Make `edits` the edits of a curation folder, in place of all earlier ones; returns them.

    Edits without a reviewer or a time get `reviewer` and the present time. An edit that the folder already has keeps
    its reviewer and time, so writing the same edits again changes nothing.

    Raises:
        RunError: the folder is not a curation folder, or the split was built again.
        DatasetError: an edit does not fit the split; the message lists all that do not.
    """
    curation = open_curation(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with exclusive(folder, patience=PATIENCE_SECONDS):
        edits = [_storable(edit) for edit in edits]
        signed = {_unsigned(edit): edit for edit in edits_of(folder)}
        new = [_repinned(signed.get(_unsigned(edit)), edit) or _signed(edit, reviewer, now) for edit in edits]
        edited = edited_items(load_items(curation.address), curation.address, new, "the edits")
        new = [_pinned(edit, edited) for edit in new]
        with atomic_file(folder / EDITS_FILE) as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(edit) + b"\n" for edit in new))
    return new


def _storable(edit: Edit) -> Edit:
    """The edit with its masks as text. Codes of pycocotools are bytes, which JSON cannot hold."""
    if isinstance(edit, Split):
        return msgspec.structs.replace(edit, parts=tuple(_text_code(part) for part in edit.parts))
    if isinstance(edit, Add) or (isinstance(edit, Merge) and edit.mask is not None):
        return msgspec.structs.replace(edit, mask=_text_code(edit.mask or {}))
    return edit


def _text_code(rle: dict[str, Any]) -> dict[str, Any]:
    try:
        mask = Mask.from_rle(rle)
    except MaskError:
        return rle  # named with all other problems
    return {"size": [mask.height, mask.width], "counts": mask.counts.decode("ascii")}


def _unsigned(edit: Edit) -> bytes:
    plain = msgspec.structs.replace(edit, reviewer="", time="")
    return msgspec.json.encode(msgspec.structs.replace(plain, mask_sha256="") if isinstance(plain, Replace) else plain)


def _repinned(stored: Edit | None, edit: Edit) -> Edit | None:
    """The stored edit, with the sha256 that the new one states: "" accepts the mask as it is now."""
    if isinstance(stored, Replace) and isinstance(edit, Replace):
        return msgspec.structs.replace(stored, mask_sha256=edit.mask_sha256)
    return stored


def _pinned(edit: Edit, edited: Edited) -> Edit:
    if not isinstance(edit, Replace):
        return edit
    return msgspec.structs.replace(edit, mask_sha256=mask_sha256(edited.changes[edit.mask]["mask"]))


def _signed(edit: Edit, reviewer: str, now: str) -> Edit:
    return msgspec.structs.replace(edit, reviewer=edit.reviewer or reviewer, time=edit.time or now)


@dataclasses.dataclass(frozen=True, slots=True)
class Edited:
    """The effect of edits on a ledger: decisions that replace those about masks, changes of rows, and added rows.

    `changes` maps the ids of masks and expressions to the fields of their rows that differ.
    """

    masks: Mapping[str, Decision]
    changes: Mapping[str, Mapping[str, Any]]
    added: Sequence[Row]


def edited_items(images: Sequence[ImageItems], address: str, edits: Sequence[Edit], where: str) -> Edited:
    """Check edits against the items of a split, and determine their effect; `where` names the edits in errors.

    Raises:
        DatasetError: an edit names a mask, an expression, an image or an object that does not exist, a mask has another
            size than its image or is empty, or a mask is in two edits. The message lists all problems.
    """
    work = _Effects(images, address)
    for number, edit in enumerate(edits, start=1):
        try:
            work.add(edit)
        except (DatasetError, MaskError) as error:
            work.problems.append(f"edit {number} ({edit.__struct_config__.tag}): {error}")
    if work.problems:
        raise DatasetError(
            f"{where} cannot be applied to {address}: {len(work.problems)} problems.\n"
            f"{summarise_problems(work.problems)}"
        )
    return Edited(work.masks, work.changes, work.added)


class _Effects:
    """The effects of edits, which are added one by one."""

    def __init__(self, images: Sequence[ImageItems], address: str) -> None:
        self.address = address
        self.images = {i.image_id: i for i in images}
        self.targets = {t.mask_id: t for i in images for t in i.masks}
        objects = {o.ann_id for i in images for o in i.objects}
        self.taken_ids = objects | {s.ref_id for i in images for s in i.samples}
        self.shared = {a for t in self.targets.values() if len(t.ann_ids) > 1 for a in t.ann_ids}
        self.masks: dict[str, Decision] = {}
        self.changes: dict[str, dict[str, Any]] = {}
        self.added: list[Row] = []
        self.problems: list[str] = []
        self._additions = 0
        self._others: dict[str, dict[str, Mask]] = {}

    def add(self, edit: Edit) -> None:
        if isinstance(edit, Merge):
            self._merge(edit)
        elif isinstance(edit, Split):
            self._split(edit)
        elif isinstance(edit, Add):
            self._add(edit)
        elif isinstance(edit, Replace):
            self._replace(edit)
        else:
            target = self._target(edit.mask)
            self._change(target, edit, CROWD, None)
            for sample in target.samples:
                self.changes[sample.sample_id] = {"action": DROPPED, **_why(edit, "its mask is marked as a crowd")}

    def _merge(self, edit: Merge) -> None:
        if len(edit.masks) < 2 or len(set(edit.masks)) < len(edit.masks):
            raise DatasetError("name at least two masks, and each only once")
        targets = [self._target(mask_id) for mask_id in edit.masks]
        first, *others = targets
        if {t.image_id for t in targets} != {first.image_id}:
            raise DatasetError(f"the masks {', '.join(edit.masks)} are on different images")
        mask = first.mask
        for other in others:
            mask = mask.union(other.mask)
        if edit.mask is not None:
            mask = self._mask(edit.mask, self.images[first.image_id])
        self._change(first, edit, CHANGED, mask, f"merged with {', '.join(t.mask_id for t in others)}")
        for other in others:
            self._change(other, edit, MERGED, None)
            self.changes[other.mask_id] |= {"into": first.mask_id}

    def _split(self, edit: Split) -> None:
        target = self._target(edit.mask)
        image = self.images[target.image_id]
        if len(edit.parts) < 2:
            raise DatasetError("a split has at least two parts")
        parts = [self._mask(part, image) for part in edit.parts]
        samples = {s.sample_id: s for s in target.samples}
        for sample_id, number in edit.expressions.items():
            if sample_id not in samples:
                raise DatasetError(f"{sample_id} is not an expression of {target.mask_id}")
            if not 1 <= number <= len(parts):
                raise DatasetError(f"the part of {sample_id} must be between 1 and {len(parts)}, got {number}")
        ids = [target.mask_id]
        number = 2
        while len(ids) < len(parts):
            if not self._is_known(mask_id := f"{target.mask_id}-{number}"):
                ids.append(mask_id)
            number += 1
        self._change(target, edit, SPLIT, parts[0])
        for mask_id, part in zip(ids[1:], parts[1:], strict=True):
            self._new_mask(edit, mask_id, image, part, target.category, f"a part of {target.mask_id}")
        for sample_id, number in edit.expressions.items():
            if number > 1:
                self.changes[sample_id] = {"action": MOVED, "into": ids[number - 1], **_why(edit)}

    def _add(self, edit: Add) -> None:
        image = self.images.get(edit.image)
        if image is None:
            raise DatasetError(f"{self.address} has no image {edit.image!r}")
        if not all(text.strip() for text in edit.expressions):
            raise DatasetError("an expression is empty")
        mask = self._mask(edit.mask, image)
        self._additions += 1
        while self._is_known(mask_id := f"{self.address}/added-{self._additions}"):
            self._additions += 1
        self._new_mask(edit, mask_id, image, mask, edit.category)
        for number, text in enumerate(edit.expressions):
            self.added.append(
                Row(
                    EXPRESSION, f"{mask_id}/{number}", image.image_id, ADDED, STAGE, edit.reason, text_sha256(text),
                    reviewer=edit.reviewer, time=edit.time, into=mask_id, expression=text,
                )
            )  # fmt: skip

    def _replace(self, edit: Replace) -> None:
        target = self._target(edit.mask, several=True)
        dataset, _, ann_id = edit.by.partition("/")
        if not ann_id:
            raise DatasetError(f"`by` must be DATASET/ANNOTATION, got {edit.by!r}")
        if dataset not in self._others:
            self._others[dataset] = {o.ann_id: o.mask for o in load_objects(dataset)}
        mask = self._others[dataset].get(ann_id)
        if mask is None:
            raise DatasetError(f"{dataset} has no object {ann_id}")
        if mask.size != target.mask.size or mask.area == 0:
            raise DatasetError(
                f"the mask of {edit.by} is {mask.size}, area {mask.area}; the image is {target.mask.size}"
            )
        if edit.mask_sha256 not in ("", mask_sha256(mask)):
            raise DatasetError(f"the mask of {edit.by} has changed since the edit was stored; store the edits again")
        self._change(target, edit, REPLACED, mask)
        self.changes[target.mask_id] |= {"refiner": edit.by}

    def _target(self, mask_id: str, *, several: bool = False) -> TargetMask:
        target = self.targets.get(mask_id)
        if target is None:
            raise DatasetError(f"{self.address} has no mask {mask_id!r}")
        if mask_id in self.changes:
            raise DatasetError(f"{mask_id} is in an earlier edit too")
        if not several and (len(target.ann_ids) != 1 or self.shared & set(target.ann_ids)):
            raise DatasetError(
                f"{mask_id} is part of a target of several objects, which can only be replaced; edit the annotations "
                "of the source instead, and build it again"
            )
        return target

    def _is_known(self, mask_id: str) -> bool:
        """Whether a mask, an object or a ref has this id already."""
        return mask_id in self.targets or mask_id.split("/", 2)[2] in self.taken_ids

    def _change(self, target: TargetMask, edit: Edit, action: str, mask: Mask | None, reason: str = "") -> None:
        why = _why(edit, reason)
        self.masks[target.mask_id] = Decision(
            target.mask_id, Action.KEEP, STAGE, why["reason"], reviewer=edit.reviewer, time=edit.time,
            cause=Cause.PERSON,
        )  # fmt: skip
        self.changes[target.mask_id] = {"action": action, "mask": mask, **why}

    def _new_mask(
        self, edit: Edit, mask_id: str, image: ImageItems, mask: Mask, category: str, reason: str = ""
    ) -> None:
        why = _why(edit, reason)
        self.added.append(
            Row(
                MASK, mask_id, image.image_id, ADDED, STAGE, why["reason"], "", reviewer=edit.reviewer, time=edit.time,
                mask=mask, category=category,
            )
        )  # fmt: skip

    def _mask(self, rle: dict[str, Any], image: ImageItems) -> Mask:
        mask = Mask.from_rle(rle)
        if mask.size != (image.height, image.width):
            raise DatasetError(f"the mask is {mask.size}, the image {(image.height, image.width)}")
        if mask.area == 0:
            raise DatasetError("the mask is empty")
        return mask


def _why(edit: Edit, reason: str = "") -> dict[str, str]:
    text = ": ".join(t for t in (reason, edit.reason) if t)
    return {"stage": STAGE, "reason": text, "reviewer": edit.reviewer, "time": edit.time}


def edited_rows(rows: Iterable[Row], edited: Edited) -> list[Row]:
    """The rows of a ledger after edits. Expressions that were dropped stay dropped."""
    out = []
    for row in rows:
        change = edited.changes.get(row.item_id, {})
        if row.item == MASK or row.action == KEPT:
            row = dataclasses.replace(row, **change)
        out.append(row)
    return [*out, *edited.added]
