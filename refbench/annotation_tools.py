"""The review queue for people who have CVAT or Label Studio, and their answers read back.

Each has a run-length code of its own, neither of them COCO's: CVAT counts along the rows of the mask's box; Label
Studio packs the bits of a red, green, blue and opacity picture.

Sources: CVAT's documentation of "CVAT for images 1.1"; Label Studio's format is that of the JavaScript package
`@thi.ng/rle-pack`.
"""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.ledger import EXPRESSION, MASK
from refbench.curation.queue import SETTLED, queue_of
from refbench.curation.reviews import REVIEW_FILE, Answer, Reviews
from refbench.curation.tables import read_decisions
from refbench.curator import load_items, open_curation
from refbench.errors import MaskError, RunError, summarise_problems
from refbench.mask import Mask, run_lengths
from refbench.provenance import now
from refbench.storage import atomic_file, read_json, write_json

CVAT, LABEL_STUDIO = "cvat", "label-studio"
LABEL = "target"
CHOICES = ("keep", "change", "drop")
# Word and run sizes in bits: what Label Studio itself writes.
_WORD_BITS, _RUN_BITS = 8, (3, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a file says about one item; `mask` None where it holds none, `action` "" where it names none."""

    item_id: str
    action: str
    mask: Mask | None
    note: str


def write_queue(folder: Path, form: str, path: Path, *, everything: bool = False) -> int:
    """Write what waits for people; returns how many items. `form` is "cvat" (XML) or "label-studio" (JSON).

    Raises:
        RunError: an unknown form, or no decisions yet.
    """
    _known(form)
    curation = open_curation(folder)
    masks, expressions = read_decisions(folder)
    review = folder / REVIEW_FILE
    standing = Reviews(review).standing() if review.is_file() else {}
    queue = queue_of(masks, expressions, standing, curation.recipe.reviewers, everything=everything)
    wanted = {e.item_id for e in queue if e.state != SETTLED}
    images = load_items(curation.address)
    if form == CVAT:
        return _write_cvat(images, wanted, path)
    return _write_label_studio(images, wanted, path)


def read_answers(folder: Path, form: str, path: Path, *, reviewer: str = "") -> int:
    """Read what people have answered in another program; returns how many answers are new.

    A mask that is as it was is "keep", another one "change", unless the file says what to do. Reading a file twice adds
    nothing.

    Raises:
        RunError: an unknown form, a damaged file, an item that the split does not have; nothing is written then.
    """
    _known(form)
    curation = open_curation(folder)
    targets: dict[str, TargetMask] = {}
    samples: set[str] = set()
    for image in load_items(curation.address):
        targets |= {t.mask_id: t for t in image.masks}
        samples |= {s.sample_id for s in image.samples}
    given = list(_read_cvat(path) if form == CVAT else _read_label_studio(path))
    name = reviewer.strip() or form
    answers, problems = [], []
    for k, one in enumerate(given):
        try:
            answers.append(_answer(one, targets, samples, name, form))
        except (RunError, MaskError) as error:
            problems.append(f"entry {k} ({one.item_id or 'without item_id'}): {error}")
    if problems:
        raise RunError(
            f"{path}: {len(problems)} answers cannot be used, so none was taken.\n{summarise_problems(problems)}"
        )
    reviews = Reviews(folder / REVIEW_FILE)
    return sum(reviews.add(a) for a in answers if a is not None)


def _known(form: str) -> None:
    if form not in (CVAT, LABEL_STUDIO):
        raise RunError(f"{form!r} is no form of exchange; there are {CVAT} and {LABEL_STUDIO}")


def _answer(
    given: _Given, targets: dict[str, TargetMask], samples: set[str], reviewer: str, form: str
) -> Answer | None:
    if given.item_id not in targets and given.item_id not in samples:
        raise RunError("the split has no such item; keep the attribute item_id as it was written")
    if given.action not in ("", *CHOICES):
        raise RunError(f"the action is one of {', '.join(CHOICES)} or left empty, not {given.action!r}")
    item = MASK if given.item_id in targets else EXPRESSION
    action, mask = given.action, given.mask
    if item == MASK and mask is not None and mask.size != targets[given.item_id].mask.size:
        raise RunError(f"its mask is of {mask.size}, the image of {targets[given.item_id].mask.size}")
    if not action:
        if item == EXPRESSION or mask is None:
            return None
        action = "keep" if mask == targets[given.item_id].mask else "change"
    if action == "change" and mask is None:
        raise RunError("it changes a mask, but holds none")
    mask = mask if action == "change" else None
    content = [given.item_id, reviewer, action, mask.counts.decode("ascii") if mask else "", given.note]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Answer(key, item, given.item_id, reviewer, action, now(), mask, form if mask else "", given.note)


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
                ElementTree.SubElement(mask, "attribute", name=key).text = text
            written += 1
    with atomic_file(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    return written


def _read_cvat(path: Path) -> Iterator[_Given]:
    try:
        content = path.read_bytes()
        # No entities, so that a small file stays small.
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise RunError(f"{path} declares entities, which CVAT never does; export it again")
        root = ElementTree.fromstring(content)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except ElementTree.ParseError as error:
        raise RunError(f"{path} is no XML ({error}); export it again as 'CVAT for images 1.1'") from None
    if root.tag != "annotations":
        raise RunError(f"{path} is no export of CVAT: it begins with <{root.tag}>, not <annotations>")
    for image in root.iter("image"):
        for node in image:
            if node.tag not in ("mask", "polygon"):
                continue
            texts = {a.get("name", ""): (a.text or "").strip() for a in node.iter("attribute")}
            mask = _cvat_mask(node, image, path)
            yield _Given(texts.get("item_id", ""), texts.get("action", ""), mask, texts.get("note", ""))


def _cvat_mask(node: ElementTree.Element, image: ElementTree.Element, path: Path) -> Mask | None:
    try:
        height, width = int(image.get("height", "")), int(image.get("width", ""))
        if node.tag == "polygon":
            corners = [float(v) for point in node.get("points", "").split(";") for v in point.split(",")]
            return Mask.from_polygons([corners], height, width)
        left, top, w, h = (int(float(node.get(k, ""))) for k in ("left", "top", "width", "height"))
        runs = [int(v) for v in node.get("rle", "").split(",")]
        return mask_from_cvat((left, top, w, h), runs, height, width)
    except (ValueError, MaskError) as error:
        raise RunError(f"{path}, image {image.get('name')}: a {node.tag} cannot be read ({error})") from None


def cvat_runs(mask: Mask) -> tuple[tuple[int, int, int, int], list[int]]:
    """The box [left, top, width, height] of a mask and its runs along the rows of the box, background first."""
    left, top, width, height = (int(v) for v in mask.box_xywh)
    if mask.area == 0:
        return (0, 0, 1, 1), [1]
    flat = mask.to_array()[top : top + height, left : left + width].ravel()
    return (left, top, width, height), run_lengths(flat)


def mask_from_cvat(box: tuple[int, int, int, int], runs: Sequence[int], height: int, width: int) -> Mask:
    """The mask of an image of this size from CVAT's box and runs.

    Raises:
        MaskError: the box leaves the image, or the runs do not fill it.
    """
    left, top, w, h = box
    if min(left, top) < 0 or min(w, h) < 1 or left + w > width or top + h > height:
        raise MaskError(f"the box {box} leaves the image of {height} x {width}")
    if min(runs, default=-1) < 0 or sum(runs) != w * h:
        raise MaskError(f"its runs add up to {sum(runs)}, not to {w} x {h}")
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


def _read_label_studio(path: Path) -> Iterator[_Given]:
    tasks = read_json(path, RunError)
    if not isinstance(tasks, list):
        raise RunError(f"{path} is no export of Label Studio: it holds no list of tasks; export it as JSON")
    for k, task in enumerate(tasks):
        try:
            item_id = str(task["data"]["item_id"])
            done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        except (KeyError, TypeError, AttributeError):
            raise RunError(f"{path}, task {k} has no data.item_id; keep it as it was written") from None
        for annotation in done:
            action, note, masks = "", "", []
            for result in annotation.get("result") or []:
                value = result.get("value") or {}
                if result.get("type") == "choices":
                    action = str((value.get("choices") or [""])[0])
                elif result.get("type") == "textarea":
                    note = " ".join(map(str, value.get("text") or []))
                elif result.get("type") == "brushlabels":
                    try:
                        size = int(result["original_height"]), int(result["original_width"])
                        masks.append(unpack_label_studio(value["rle"], *size))
                    except (KeyError, TypeError, ValueError, MaskError) as error:
                        raise RunError(f"{path}, task {k} ({item_id}): its brush cannot be read ({error})") from None
            mask = masks[0].union(*masks[1:]) if masks else None
            yield _Given(item_id, action, mask, note)


def pack_label_studio(mask: Mask) -> list[int]:
    """Bytes 0..255: the opacity picture of a mask, rows first, four equal channels, as packed runs."""
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
    """The mask of an image of this size from Label Studio's packed runs; what is not transparent is foreground.

    Raises:
        MaskError: it ends too early, or is of another size.
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
        raise MaskError(f"it has {count} values, not 4 x {height} x {width}")
    word_bits = read(5) + 1
    run_bits = [read(4) + 1 for _ in range(4)]
    values: NDArray[np.uint32] = np.zeros(count, np.uint32)
    place = 0
    while place < count:
        same = read(1)
        end = place + 1 + read(run_bits[read(2)])
        if end > count:
            raise MaskError("its runs are longer than the picture")
        if same:
            values[place:end] = read(word_bits)
        else:
            values[place:end] = [read(word_bits) for _ in range(end - place)]
        place = end
    return Mask.from_array(values.reshape(height, width, 4)[..., 3] > 0)
