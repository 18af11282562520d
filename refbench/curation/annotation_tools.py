"""Exports the review queue for CVAT or Label Studio, and imports the answers.

Each program has its own run-length code, which differs from that of COCO. CVAT stores run lengths along the rows of the
bounding box of the mask; Label Studio stores the packed bits of an RGBA image.

Sources: for CVAT, the documentation of "CVAT for images 1.1"; for Label Studio, the JavaScript package
`@thi.ng/rle-pack`, whose format it uses.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbench.curation.folder import load_items, open_curation
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.ledger import EXPRESSION, MASK
from refbench.curation.review.answers import REVIEW_FILE, Answer, Reviews, check_answer, same_name
from refbench.curation.review.queue import SETTLED, queue_of
from refbench.curation.tables import read_decisions
from refbench.errors import MaskError, RunError, summarise_problems
from refbench.masks.mask import Mask
from refbench.masks.rle import run_lengths
from refbench.records import Action
from refbench.storage.files import atomic_file, read_json, write_json
from refbench.storage.provenance import now

CVAT, LABEL_STUDIO = "cvat", "label-studio"
LABEL = "target"
CHOICES = (Action.KEEP, Action.CHANGE, Action.DROP)
# What XML 1.0 has no way to write.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Word and run sizes in bits: what Label Studio itself writes.
_WORD_BITS, _RUN_BITS = 8, (3, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class _Given:
    """The content of a file about one item; `mask` is None if there is no mask, and `action` is "" if there is no
    action.
    """

    item_id: str
    action: str
    mask: Mask | None
    note: str
    annotator: str = ""


def write_queue(folder: Path, form: str, path: Path, *, everything: bool = False) -> tuple[int, int]:
    """Write the masks that need review; `form` is "cvat" (XML) or "label-studio" (JSON).

    Returns the number of masks written, and the number of expressions that also need review. Expressions are not
    written, because these programs only draw masks; review them on the review page.

    Raises:
        RunError: the format is unknown, or there are no decisions yet.
    """
    _known(form)
    curation = open_curation(folder)
    masks, expressions = read_decisions(folder)
    review = folder / REVIEW_FILE
    standing = Reviews(review, new=False).standing() if review.is_file() else {}
    queue = queue_of(masks, expressions, standing, curation.recipe.reviewers, everything=everything)
    open_ = [e for e in queue if e.state != SETTLED]
    wanted = {e.item_id for e in open_ if e.item == MASK}
    images = load_items(curation.address)
    written = _write_cvat(images, wanted, path) if form == CVAT else _write_label_studio(images, wanted, path)
    return written, len(open_) - len(wanted)


def read_answers(folder: Path, form: str, path: Path, *, reviewer: str = "") -> int:
    """Import the answers that people gave in another program; returns the number of new answers.

    An unchanged mask means "keep" and a changed mask "change", unless the file states an action. Several masks of one
    item are merged. Each annotator in Label Studio counts as a reviewer. An answer that the same reviewer has already
    given, and has not taken back, is not stored again.

    Raises:
        RunError: the format is unknown, the file is damaged, or the split has no such item; then nothing is imported.
    """
    _known(form)
    curation = open_curation(folder)
    targets: dict[str, TargetMask] = {}
    samples: set[str] = set()
    for image in load_items(curation.address):
        targets |= {t.mask_id: t for t in image.masks}
        samples |= {s.sample_id for s in image.samples}
    given = _merged(_read_cvat(path, targets) if form == CVAT else _read_label_studio(path, targets))
    several = len({one.annotator for one in given}) > 1
    reviews = Reviews(folder / REVIEW_FILE)
    standing = {(i, same_name(a.reviewer)): a for i, answers in reviews.standing().items() for a in answers}
    answers, problems = [], []
    for k, one in enumerate(given):
        name = (reviewer.strip() or form) + (f"/{one.annotator}" if several else "")
        try:
            answer = _answer(one, targets, samples, name, form)
            if answer is None or _same(answer, standing.get((answer.item_id, same_name(name)))):
                continue
            check_answer(answer)
            answers.append(answer)
        except (RunError, MaskError) as error:
            problems.append(f"entry {k} ({one.item_id or 'without item_id'}): {error}")
    if problems:
        raise RunError(
            f"{path}: {len(problems)} answers are invalid, so nothing was imported.\n{summarise_problems(problems)}"
        )
    return reviews.add_all(answers)


def _merged(given: Iterable[_Given]) -> list[_Given]:
    """One entry per item and annotator: the union of the masks, and the last non-empty action and note."""
    out: dict[tuple[str, str], _Given] = {}
    for one in given:
        before = out.get((one.item_id, one.annotator))
        if before is not None:
            masks = [m for m in (before.mask, one.mask) if m is not None]
            mask = masks[0].union(*masks[1:]) if masks else None
            one = _Given(one.item_id, one.action or before.action, mask, one.note or before.note, one.annotator)
        out[one.item_id, one.annotator] = one
    return list(out.values())


def _same(answer: Answer, standing: Answer | None) -> bool:
    return standing is not None and (answer.action, answer.mask) == (standing.action, standing.mask)


def _known(form: str) -> None:
    if form not in (CVAT, LABEL_STUDIO):
        raise RunError(f"{form!r} is not a supported format; use {CVAT} or {LABEL_STUDIO}")


def _answer(
    given: _Given, targets: dict[str, TargetMask], samples: set[str], reviewer: str, form: str
) -> Answer | None:
    if given.item_id not in targets and given.item_id not in samples:
        raise RunError("the split has no such item; do not change the attribute item_id")
    if given.action not in ("", *CHOICES):
        raise RunError(f"the action must be one of {', '.join(CHOICES)} or empty, got {given.action!r}")
    item = MASK if given.item_id in targets else EXPRESSION
    action, mask = given.action, given.mask
    if item == MASK and mask is not None and mask.size != targets[given.item_id].mask.size:
        raise RunError(
            f"the mask must have the same size as its image, {targets[given.item_id].mask.size}, got {mask.size}"
        )
    if not action:
        if item == EXPRESSION or mask is None:
            return None
        action = Action.KEEP if mask == targets[given.item_id].mask else Action.CHANGE
    if action == Action.CHANGE and mask is None:
        raise RunError("the action is `change`, but the file contains no mask for this item")
    mask = mask if action == Action.CHANGE else None
    origin = form if mask else ""
    return Answer(secrets.token_hex(16), item, given.item_id, reviewer, action, now(), mask, origin, given.note)


def _write_cvat(images: Sequence[ImageItems], wanted: set[str], path: Path) -> int:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    written = 0
    for number, image in enumerate(images):
        targets = [t for t in image.masks if t.mask_id in wanted]
        if not targets:
            continue
        node = ElementTree.SubElement(
            root, "image", id=str(number), name=Path(image.image_path).name or image.image_id, width=str(image.width),
            height=str(image.height),
        )  # fmt: skip
        for target in targets:
            box, runs = cvat_runs(target.mask)
            mask = ElementTree.SubElement(
                node, "mask", label=LABEL, source="manual", occluded="0", z_order="0", rle=", ".join(map(str, runs)),
                left=str(box[0]), top=str(box[1]), width=str(box[2]), height=str(box[3]),
            )  # fmt: skip
            texts = " / ".join(s.expression for s in target.samples)
            for key, text in (("item_id", target.mask_id), ("action", ""), ("note", ""), ("expressions", texts)):
                ElementTree.SubElement(mask, "attribute", name=key).text = NOT_XML.sub("\ufffd", text)
            written += 1
    with atomic_file(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    return written


def _read_cvat(path: Path, targets: Mapping[str, TargetMask]) -> Iterator[_Given]:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoEntities())).getroot()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except _Doctype:
        raise RunError(f"{path} declares XML entities, which CVAT never does; export it again") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RunError(f"{path} is not valid XML ({error}); export it again as 'CVAT for images 1.1'") from None
    if root.tag != "annotations":
        raise RunError(f"{path} is not a CVAT export: it begins with <{root.tag}> instead of <annotations>")
    for image in root.iter("image"):
        for node in image:
            if node.tag not in ("mask", "polygon"):
                continue
            texts = {a.get("name", ""): (a.text or "").strip() for a in node.iter("attribute")}
            item_id = texts.get("item_id", "")
            mask = _cvat_mask(node, image, path, targets[item_id].mask.size) if item_id in targets else None
            yield _Given(item_id, texts.get("action", ""), mask, texts.get("note", ""))


class _Doctype(Exception):
    """The XML file declares its own document type, which is refused."""


class _NoEntities(ElementTree.TreeBuilder):
    """A parser that refuses files with entity declarations, in any encoding, because entities can expand to huge
    texts.
    """

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _Doctype(name)


def _cvat_mask(node: ElementTree.Element, image: ElementTree.Element, path: Path, size: tuple[int, int]) -> Mask:
    """The mask of an XML node. Its image must have the same size as the image of the item."""
    try:
        said = int(image.get("height", "")), int(image.get("width", ""))
        if said != size:
            raise MaskError(
                f"the image size in the file is {said[0]} x {said[1]}, but the size of the image is {size[0]} x "
                f"{size[1]}"
            )
        if node.tag == "polygon":
            corners = [float(v) for point in node.get("points", "").split(";") for v in point.split(",")]
            return Mask.from_polygons([corners], *size)
        left, top, w, h = (int(float(node.get(k, ""))) for k in ("left", "top", "width", "height"))
        runs = [int(v) for v in node.get("rle", "").split(",")]
        return mask_from_cvat((left, top, w, h), runs, *size)
    except (ValueError, OverflowError, MaskError) as error:
        raise RunError(f"{path}, image {image.get('name')}: a <{node.tag}> cannot be read ({error})") from None


def cvat_runs(mask: Mask) -> tuple[tuple[int, int, int, int], list[int]]:
    """The box [left, top, width, height] of a mask and its runs along the rows of the box, background first."""
    left, top, width, height = (int(v) for v in mask.box_xywh)
    if mask.area == 0:
        return (0, 0, 1, 1), [1]
    flat = mask.to_array()[top : top + height, left : left + width].ravel()
    return (left, top, width, height), run_lengths(flat)


def mask_from_cvat(box: tuple[int, int, int, int], runs: Sequence[int], height: int, width: int) -> Mask:
    """The mask decoded from a box and runs of CVAT, for an image of the given size.

    Raises:
        MaskError: the box extends beyond the image, or the runs do not fill it.
    """
    left, top, w, h = box
    if min(left, top) < 0 or min(w, h) < 1 or left + w > width or top + h > height:
        raise MaskError(f"the box {box} extends beyond the image of {height} x {width} pixels (height x width)")
    if min(runs, default=-1) < 0 or sum(runs) != w * h:
        raise MaskError(f"the sum of the runs must be {w} x {h}, got {sum(runs)}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return Mask.from_crop(np.ascontiguousarray(flat.reshape(h, w)), top, left, height, width)


def _write_label_studio(images: Sequence[ImageItems], wanted: set[str], path: Path) -> int:
    tasks = []
    for image in images:
        for target in image.masks:
            if target.mask_id not in wanted:
                continue
            name = Path(image.image_path).name or image.image_id
            result = {
                "id": hashlib.sha256(target.mask_id.encode()).hexdigest()[:10],
                "from_name": "mask",
                "to_name": "image",
                "type": "brushlabels",
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": pack_label_studio(target.mask), "brushlabels": [LABEL]},
            }
            data = {
                "image": f"/data/local-files/?d={name}",
                "item_id": target.mask_id,
                "expressions": [s.expression for s in target.samples],
            }
            tasks.append({"data": data, "predictions": [{"model_version": "source", "result": [result]}]})
    write_json(path, tasks)
    return len(tasks)


def _read_label_studio(path: Path, targets: Mapping[str, TargetMask]) -> Iterator[_Given]:
    tasks = read_json(path, RunError)
    if not isinstance(tasks, list):
        raise RunError(f"{path} is not a Label Studio export: it contains no list of tasks; export it as JSON")
    for k, task in enumerate(tasks):
        try:
            item_id = str(task["data"]["item_id"])
            done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        except (KeyError, TypeError, AttributeError):
            raise RunError(f"{path}: task {k} has no data.item_id; do not remove this field") from None
        try:
            for annotation in done:
                yield _label_studio_annotation(item_id, annotation, targets)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, MaskError) as error:
            raise RunError(f"{path}, task {k} ({item_id}): the annotation cannot be read ({error})") from None


def _label_studio_annotation(item_id: str, annotation: Mapping[str, Any], targets: Mapping[str, TargetMask]) -> _Given:
    action, note, masks = "", "", []
    for result in annotation.get("result") or []:
        value = result.get("value") or {}
        if result.get("type") == "choices":
            action = str((value.get("choices") or [""])[0])
        elif result.get("type") == "textarea":
            note = " ".join(map(str, value.get("text") or []))
        elif result.get("type") == "brushlabels" and item_id in targets:
            packed = value["rle"]
            if not isinstance(packed, list):
                raise MaskError("rle must be a list of bytes")
            masks.append(unpack_label_studio(packed, *targets[item_id].mask.size))
    who = annotation.get("completed_by", "")
    name = str(who.get("email") or who.get("id")) if isinstance(who, dict) else str(who)
    return _Given(item_id, action, masks[0].union(*masks[1:]) if masks else None, note, name)


def pack_label_studio(mask: Mask) -> list[int]:
    """The mask in the run-length code of Label Studio, as bytes 0..255: an RGBA image with equal channels, row by
    row.
    """
    runs = run_lengths(mask.to_array().ravel())
    bits: list[str] = [f"{4 * mask.height * mask.width:032b}", f"{_WORD_BITS - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _RUN_BITS]
    for k, run in enumerate(runs):
        left = 4 * run
        word = f"{255 if k % 2 else 0:0{_WORD_BITS}b}"
        while left:
            size = next((s for s in _RUN_BITS if left <= 2**s), _RUN_BITS[-1])
            taken = min(left, 2**size)
            bits.append(f"1{_RUN_BITS.index(size):02b}{taken - 1:0{size}b}{word}")
            left -= taken
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[k : k + 8], 2) for k in range(0, len(text), 8)]


def unpack_label_studio(packed: Sequence[int], height: int, width: int) -> Mask:
    """The mask decoded from packed runs of Label Studio, for an image of the given size; pixels that are not
    transparent are foreground.

    Raises:
        MaskError: the runs end too early, or do not match the size of the image.
    """
    data = bytes(packed)
    text = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(size: int) -> int:
        nonlocal at
        if at + size > len(text):
            raise MaskError("the packed runs end too early")
        at += size
        return int(text[at - size : at], 2)

    count = read(32)
    if count != 4 * height * width:
        raise MaskError(f"it has {count} values instead of 4 x {height} x {width}")
    word_bits = read(5) + 1
    run_bits = [read(4) + 1 for _ in range(4)]
    values: NDArray[np.uint32] = np.zeros(count, np.uint32)
    place = 0
    while place < count:
        same = read(1)
        end = place + 1 + read(run_bits[read(2)])
        if end > count:
            raise MaskError("the runs cover more pixels than the image has")
        if same:
            values[place:end] = read(word_bits)
        else:
            values[place:end] = [read(word_bits) for _ in range(end - place)]
        place = end
    return Mask.from_array(values.reshape(height, width, 4)[..., 3] > 0)
