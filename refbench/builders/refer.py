"""RefCOCO, RefCOCO+ and both partitions of RefCOCOg, from the files of the original REFER release.

Layout (github.com/lichengunc/refer): `<root>/refcoco/refs(unc).p`, a Python 2 pickle with one dict a ref,
and `instances.json` beside it, in COCO format with the polygons. Images: any folder that holds COCO's
train2014 photographs, or a folder above it.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from refbench.builders.base import Built, Sources, source_of
from refbench.errors import DatasetError, MaskError, summarise_problems
from refbench.images import image_size
from refbench.mask import Mask
from refbench.progress import Progress
from refbench.records import AnnotatedObject, Sample
from refbench.storage import read_json

VERSION = 1
LICENCE = "annotations: Apache-2.0 (lichengunc/refer); photographs: their Flickr licences, see COCO"

# COCO polygons end at the image border; a corner further out than this belongs to another image.
OUTSIDE_TOLERANCE_PX = 2.0
# Files of a dataset's folder that a split must not overwrite.
RESERVED_NAMES = ("objects", "manifest", "images")
IMAGE_PLACES = ("", "train2014", "images/train2014", "images/mscoco/images/train2014")


@dataclass(frozen=True, slots=True)
class Layout:
    folder: str
    split_by: str

    @property
    def refs_name(self) -> str:
        return f"refs({self.split_by}).p"


LAYOUTS = {
    "refcoco": Layout("refcoco", "unc"),
    "refcoco+": Layout("refcoco+", "unc"),
    "refcocog-umd": Layout("refcocog", "umd"),
    "refcocog-google": Layout("refcocog", "google"),
}


DATA_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
    "FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT "
    "SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
).split()


class _PlainUnpickler(pickle._Unpickler):
    """Reads dicts, lists, tuples, text and numbers; has no code for anything that could call something.

    The Python implementation, for two reasons: its opcode table can be cut down to what data needs, and
    its memo is a dict, so a forged index cannot make it allocate gigabytes as the C one does.
    """

    dispatch: ClassVar = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in DATA_OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """Unpickle a file that holds data only.

    Raises:
        DatasetError: it refers to any class or function (a pickle could run code that way), or is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    try:
        # Python 2 wrote the published files: byte strings come out as text, byte by byte.
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except KeyError as error:
        code = error.args[0] if error.args else "?"
        raise DatasetError(
            f"{path} is refused: the pickle holds more than plain data (opcode or memo entry {code!r}), "
            "so reading it could run code, or it is damaged; get the file from its original source"
        ) from None
    except Exception as error:  # noqa: BLE001 (a damaged pickle can fail in any way)
        raise DatasetError(
            f"{path} is not a whole pickle of plain data ({type(error).__name__}: {error}); copy it again"
        ) from None


def find_annotations(path: Path, layout: Layout) -> Path:
    """The refs file in a folder of the original layout, or `path` itself if it is that file."""
    if path.is_file():
        if path.name != layout.refs_name:
            raise DatasetError(
                f"{path} is not {layout.refs_name}, the file of this dataset; another would be mislabelled"
            )
        return path
    for candidate in (path / layout.folder / layout.refs_name, path / layout.refs_name):
        if candidate.is_file():
            return candidate
    raise DatasetError(
        f"{path} holds neither {layout.folder}/{layout.refs_name} nor {layout.refs_name}; "
        "--annotations takes the folder of the REFER release, or that file itself"
    )


def find_image(folder: Path, file_name: str) -> Path | None:
    """`file_name` in `folder` or its usual subfolders; None if it is not there."""
    if Path(file_name).name != file_name:
        return None
    for place in IMAGE_PLACES:
        if (folder / place / file_name).is_file():
            return folder / place / file_name
    return None


def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
    """Read the REFER release; see `refbench.builders.base.Builder`.

    Raises:
        DatasetError: lists every row that cannot be used, with its position in the file.
    """
    layout = LAYOUTS[dataset]
    if sources.annotations is None:
        raise DatasetError(
            f"{dataset} is read from the REFER release: pass --annotations FOLDER, with "
            f"{layout.folder}/{layout.refs_name} and {layout.folder}/instances.json in it"
        )
    refs_path = find_annotations(sources.annotations, layout)
    instances_path = refs_path.with_name("instances.json")
    refs = read_plain_pickle(refs_path)
    if not isinstance(refs, list):
        raise DatasetError(f"{refs_path} holds a {type(refs).__name__}, not the list of refs that REFER writes")
    problems: list[str] = []
    coco = CocoInstances(read_json(instances_path), instances_path, problems)
    reader = _RefReader(dataset, refs_path, coco, sources.images, problems)
    splits: dict[str, list[Sample]] = {}
    for row, ref in enumerate(refs):
        for split, sample in reader.samples(row, ref):
            splits.setdefault(split, []).append(sample)
        if row % 200 == 0 or row + 1 == len(refs):
            progress("refs", row + 1, len(refs))
    if problems:
        raise DatasetError(
            f"{dataset} was not built: {len(problems)} rows cannot be used.\n{summarise_problems(problems)}\n"
            "Mend or re-download the files; rows are counted from 0."
        )
    if not splits:
        raise DatasetError(f"{refs_path} holds no refs")
    notes: list[str] = []
    objects = coco.objects_of(reader.image_ids, notes)
    files = [source_of(refs_path), source_of(instances_path)]
    if sources.images is None:
        notes.append("built without images: it can be scored, but no model can run on it")
    return Built("refer", VERSION, splits, objects, files, LICENCE, notes)


class CocoInstances:
    """The images, annotations and categories of an `instances.json`, checked and reachable by id."""

    def __init__(self, content: Any, path: Path, problems: list[str]) -> None:
        self.path = path
        if not isinstance(content, dict):
            raise DatasetError(f"{path} is not a COCO file: expected an object with images and annotations")
        self.images = self._by_id(content, "images", ("file_name", "height", "width"), problems)
        self.annotations = self._by_id(content, "annotations", ("image_id", "segmentation"), problems)
        categories = self._by_id(content, "categories", ("name",), problems)
        self.category_names = {i: str(row["name"]) for i, (_, row) in categories.items()}
        for i, name in self.category_names.items():
            if not _is_text(name):
                problems.append(f"{path.name} categories[{categories[i][0]}]: the name is not text that can be written")
                self.category_names[i] = ""

    def _by_id(
        self, content: Mapping[str, Any], key: str, needed: tuple[str, ...], problems: list[str]
    ) -> dict[int, tuple[int, dict[str, Any]]]:
        rows = content.get(key)
        if not isinstance(rows, list):
            raise DatasetError(f"{self.path} has no list {key!r}; it is not the instances.json of the release")
        out: dict[int, tuple[int, dict[str, Any]]] = {}
        for position, row in enumerate(rows):
            where = f"{self.path.name} {key}[{position}]"
            if not isinstance(row, dict) or not _is_id(row.get("id")):
                problems.append(f"{where}: no integer 'id'")
            elif any(k not in row for k in needed):
                missing = ", ".join(k for k in needed if k not in row)
                problems.append(f"{where} (id {row['id']}): {missing} is missing")
            elif row["id"] in out:
                problems.append(f"{where}: id {row['id']} is given twice")
            elif any(k in row and not _is_id(row[k]) for k in ("image_id", "category_id")):
                problems.append(f"{where} (id {row['id']}): image_id and category_id must be integers")
            else:
                out[row["id"]] = position, row
        return out

    def size_of(self, image_id: int) -> tuple[int, int]:
        """(height, width); raises MaskError if they are no positive integers."""
        _, image = self.images[image_id]
        return Mask.empty(image["height"], image["width"]).size

    def read_object(self, ann_id: int) -> AnnotatedObject:
        """The annotation as an object; raises MaskError (the segmentation) or KeyError (its image)."""
        _, row = self.annotations[ann_id]
        height, width = self.size_of(row["image_id"])
        segmentation = row["segmentation"]
        polygons: tuple[tuple[float, ...], ...] = ()
        if isinstance(segmentation, dict):
            mask = Mask.from_rle(segmentation)
            if mask.size != (height, width):
                raise MaskError(f"its mask is {mask.size}, its image {(height, width)} (height, width)")
        elif isinstance(segmentation, list) and segmentation:
            mask = Mask.from_polygons(segmentation, height, width)
            polygons = tuple(tuple(float(v) for v in p) for p in segmentation)
            _check_inside(polygons, height, width)
        else:
            raise MaskError("its segmentation is neither polygons nor a run-length code")
        if mask.area == 0:
            raise MaskError(f"its mask covers no pixel of the {height} x {width} image")
        name = self.category_names.get(row.get("category_id", -1), "")
        box = _box(row.get("bbox"), mask)
        crowd = bool(row.get("iscrowd", 0))
        return AnnotatedObject(str(ann_id), str(row["image_id"]), name, crowd, mask, polygons, box)

    def objects_of(self, image_ids: set[int], notes: list[str]) -> list[AnnotatedObject]:
        """Every readable annotation of these images, in file order; what cannot be read becomes a note.

        The targets were read before, with their problems reported as errors; these are the distractors.
        """
        out = []
        for ann_id, (position, row) in self.annotations.items():
            if row["image_id"] not in image_ids:
                continue
            try:
                out.append(self.read_object(ann_id))
            except MaskError as error:
                notes.append(f"left out {self.path.name} annotations[{position}] (id {ann_id}): {error}")
        return out


class _RefReader:
    """Turns rows of the refs file into samples; what is wrong with a row goes to `problems`."""

    def __init__(self, dataset: str, path: Path, coco: CocoInstances, images: Path | None, problems: list[str]) -> None:
        self.dataset = dataset
        self.path = path
        self.coco = coco
        self.images = images
        self.problems = problems
        self.image_ids: set[int] = set()
        self._ref_ids: set[int] = set()
        self._targets: dict[int, AnnotatedObject | None] = {}
        self._image_paths: dict[int, str] = {}

    def samples(self, row: int, ref: Any) -> Iterator[tuple[str, Sample]]:
        """(split, sample) for each sentence of one ref."""
        where = f"{self.path.name} row {row}"
        if not isinstance(ref, dict):
            self.problems.append(f"{where}: a {type(ref).__name__} where a dict was expected")
            return
        ref_id, ann_id, split, sentences = (ref.get(k) for k in ("ref_id", "ann_id", "split", "sentences"))
        if not _is_id(ref_id) or not _is_id(ann_id) or not isinstance(split, str) or not isinstance(sentences, list):
            self.problems.append(f"{where}: needs integer ref_id and ann_id, a split and a list of sentences")
            return
        where = f"{where} (ref_id {ref_id})"
        if ref_id in self._ref_ids:
            self.problems.append(f"{where}: this ref_id was given before")
            return
        self._ref_ids.add(ref_id)
        if not (split.isascii() and split.isalnum()) or split in RESERVED_NAMES:
            self.problems.append(f"{where}: {split[:40]!r} is no name of a split")
            return
        target = self._target(where, ann_id)
        if target is None:
            return
        image_id = int(target.image_id)
        claimed = ref.get("image_id", image_id)
        if not _is_id(claimed) or claimed != image_id:
            shown = claimed if _is_id(claimed) else type(claimed).__name__
            self.problems.append(f"{where}: image_id {shown}, but annotation {ann_id} is on image {image_id}")
            return
        if not sentences:
            self.problems.append(f"{where}: it has no sentences")
        image_path = self._image_path(where, image_id)
        if image_path is None:
            return
        self.image_ids.add(image_id)
        for k, sentence in enumerate(sentences):
            if not isinstance(sentence, dict) or not _is_id(sentence.get("sent_id")) or "sent" not in sentence:
                self.problems.append(f"{where}: sentences[{k}] needs 'sent_id' and 'sent'")
                continue
            sent_id, text = sentence["sent_id"], sentence["sent"]
            raw = sentence.get("raw", text)
            if not _is_text(text) or not _is_text(raw):
                self.problems.append(f"{where}: sentences[{k}] is not text")
                continue
            yield (
                split,
                Sample(
                    sample_id=f"{self.dataset}/{split}/{ref_id}/{sent_id}",
                    image_id=str(image_id),
                    image_path=image_path,
                    height=target.mask.height,
                    width=target.mask.width,
                    expression=text,
                    raw_expression=raw,
                    ref_id=str(ref_id),
                    sent_id=str(sent_id),
                    ann_ids=(target.ann_id,),
                    category=target.category,
                    target=target.mask,
                    no_target=False,
                    polygons=target.polygons,
                    box_xywh=target.box_xywh,
                ),
            )

    def _target(self, where: str, ann_id: int) -> AnnotatedObject | None:
        if ann_id in self._targets:
            return self._targets[ann_id]
        self._targets[ann_id] = None
        if ann_id not in self.coco.annotations:
            self.problems.append(f"{where}: annotation {ann_id} is not in {self.coco.path.name}")
            return None
        position, annotation = self.coco.annotations[ann_id]
        if annotation["image_id"] not in self.coco.images:
            self.problems.append(f"{where}: image {annotation['image_id']} is not in {self.coco.path.name}")
            return None
        try:
            self._targets[ann_id] = self.coco.read_object(ann_id)
        except MaskError as error:
            self.problems.append(
                f"{where}: annotation {ann_id} ({self.coco.path.name} annotations[{position}]): {error}"
            )
        return self._targets[ann_id]

    def _image_path(self, where: str, image_id: int) -> str | None:
        """Where the photograph lies; "" without --images; None if there is something wrong with it."""
        if self.images is None:
            return ""
        if image_id in self._image_paths:
            return self._image_paths[image_id] or None
        self._image_paths[image_id] = ""
        file_name = str(self.coco.images[image_id][1]["file_name"])
        path = find_image(self.images, file_name)
        if path is None:
            self.problems.append(f"{where}: the image {file_name} is not in {self.images}")
            return None
        try:
            found = image_size(path)
        except DatasetError as error:
            self.problems.append(f"{where}: {error}")
            return None
        expected = self.coco.size_of(image_id)
        if found != expected:
            self.problems.append(f"{where}: {path} is {found} (height, width), {self.coco.path.name} says {expected}")
            return None
        self._image_paths[image_id] = str(path.resolve())
        return self._image_paths[image_id]


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> TypeGuard[str]:
    """Text that can be written: JSON and pickles may hold halves of UTF-16 pairs, which cannot."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _check_inside(polygons: tuple[tuple[float, ...], ...], height: int, width: int) -> None:
    t = OUTSIDE_TOLERANCE_PX
    for k, polygon in enumerate(polygons):
        xs, ys = polygon[0::2], polygon[1::2]
        if min(xs) < -t or max(xs) > width + t or min(ys) < -t or max(ys) > height + t:
            raise MaskError(
                f"polygon {k} spans x {min(xs):g}..{max(xs):g}, y {min(ys):g}..{max(ys):g}, which is outside "
                f"the image of {width} x {height} px (width x height)"
            )


def _box(bbox: Any, mask: Mask) -> tuple[float, float, float, float]:
    """The published box if there is one, else the tight box of the mask."""
    if bbox is None:
        return mask.box_xywh
    try:
        left, top, width, height = (float(v) for v in bbox)
    except (TypeError, ValueError, OverflowError):
        raise MaskError("its bbox is not four numbers [left, top, width, height]") from None
    if not all(math.isfinite(v) for v in (left, top, width, height)):
        raise MaskError("its bbox holds a value that is not a finite number")
    return left, top, width, height
