"""The REFER release: published counts, real images, and files that are broken or forged."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refer_release
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refbench import load_samples
from refbench.datasets.builders import pickles, refer
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError
from refbench.storage.manifest import Manifest, dataset_folder
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects


def build(annotations: Path, images: Path | None = None, dataset: str = "refcoco") -> Manifest:
    return build_dataset(dataset, refer.build, Sources(annotations, images), silent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        ("refcoco", {"images": 1500, "refs": 3811, "expressions": 10834}),
        ("refcocog-umd", {"images": 1300, "refs": 2573, "expressions": 4896}),
    ],
)
def test_published_counts_and_one_fingerprint(
    test_data: Path, home: Path, dataset: str, counts: dict[str, int]
) -> None:
    first = build(test_data / "whole-splits" / "refer", dataset=dataset)
    second = build(test_data / "whole-splits" / "refer", dataset=dataset)
    assert {k: getattr(first.splits["val"], k) for k in counts} == counts
    assert list(first.splits) == ["val"]
    assert first.fingerprint == second.fingerprint
    assert len(load_samples(f"{dataset}/val")) == counts["expressions"]


def test_real_photographs(photos: Path, test_data: Path) -> None:
    samples = load_samples("refcoco/testB")
    zebra = next(s for s in samples if s.raw_expression == "zebra at the bottom")
    assert (zebra.category, zebra.height, zebra.width, zebra.ann_ids) == ("zebra", 640, 427, ("590410",))
    assert zebra.sample_id == "refcoco/testB/1000/0"
    assert Path(zebra.image_path).is_file()
    # The published box and the tight box of the mask differ by less than COCO's rounding.
    assert np.allclose(zebra.box_xywh, zebra.target.box_xywh, atol=1.5)
    objects = load_objects("refcoco")
    assert len(objects) == 68
    assert {a for s in samples for a in s.ann_ids} <= {o.ann_id for o in objects}


def test_the_file_itself_and_any_image_folder_are_taken(test_data: Path, home: Path) -> None:
    base = test_data / "photos"
    whole = build(base / "refer", base / "images")
    alone = build(base / "refer" / "refcoco" / "refs(unc).p", base / "images" / "train2014")
    assert whole.fingerprint == alone.fingerprint == build(base / "refer").fingerprint
    assert load_samples("refcoco/val")[0].image_path == ""


@pytest.mark.parametrize("protocol", range(5))
def test_every_pickle_protocol(tmp_path: Path, home: Path, protocol: int) -> None:
    manifest = build(refer_release.write(tmp_path, *refer_release.content(), protocol=protocol), tmp_path / "images")
    assert manifest.splits["val"].expressions == 3
    sample = load_samples("refcoco/val")[0]
    assert (sample.expression, sample.raw_expression) == ("left square", "LEFT SQUARE")


def break_(change: str) -> tuple[Any, Any]:
    refs, instances = refer_release.content()
    annotation = instances["annotations"][1]
    exec(change, {"refs": refs, "instances": instances, "annotation": annotation, "nan": float("nan")})
    return refs, instances


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("refs[1]['ann_id'] = 999", r"row 1 \(ref_id 2\): annotation 999 is not in instances.json"),
        ("refs[1]['ref_id'] = 1", r"row 1 \(ref_id 1\): this ref_id was given before"),
        ("refs[1]['image_id'] = 2", r"row 1 \(ref_id 2\): image_id 2, but annotation 12 is on image 1"),
        ("refs[1] = 'x'", r"row 1: a str where a dict was expected"),
        ("del refs[2]['split']", r"row 2: needs integer ref_id"),
        ("refs[2]['split'] = '../up'", r"row 2 \(ref_id 3\): '../up' is no name of a split"),
        ("refs[0]['sentences'][1] = {}", r"row 0 \(ref_id 1\): sentences\[1\] needs 'sent_id' and 'sent'"),
        ("refs[0]['sentences'][1]['sent'] = 5", r"row 0 \(ref_id 1\): sentences\[1\] is not text"),
        ("refs[0]['sentences'][1]['sent_id'] = 10", r"sample id refcoco/val/1/10 occurs twice"),
        ("annotation['segmentation'][0][1] = nan", r"annotations\[1\]\): polygon 0 contains a value that"),
        ("annotation['segmentation'] = [[1, 1, 2, 2]]", r"annotations\[1\]\): polygon 0 must be a flat"),
        (
            "annotation['segmentation'] = [[100, 10, 120, 10, 120, 30]]",
            r"but the image has 80 x 60 px \(width x height\)",
        ),
        ("annotation['segmentation'] = [[1, 1, 1, 1, 1, 1]]", r"covers no pixel"),
        ("annotation['segmentation'] = []", r"or run-length encoding, got \[\]"),
        (
            "annotation['segmentation'] = {'size': [9, 9], 'counts': [81]}",
            r"mask must have the same size as its image, \[60, 80\] \[height, width\], got \[9, 9\]",
        ),
        ("annotation['segmentation'] = {'size': [60, 80], 'counts': 'zz'}", "invalid run-length code"),
        ("annotation['image_id'] = 5; refs[1]['image_id'] = 5", r"image 5 is not in instances.json"),
        ("annotation['id'] = 11", r"annotations\[1\]: id 11 is given twice"),
        ("del annotation['segmentation']", r"annotations\[1\] \(id 12\): segmentation is missing"),
        ("annotation['id'] = '12'", r"annotations\[1\]: no integer 'id'"),
        ("annotation['image_id'] = [1]", r"annotations\[1\] \(id 12\): image_id and category_id must be integers"),
        ("annotation['image_id'] = 1.0", r"annotations\[1\] \(id 12\): image_id and category_id must be integers"),
        ("annotation['category_id'] = {}", r"annotations\[1\] \(id 12\): image_id and category_id must be integers"),
        (
            "annotation['bbox'] = [0, nan, 1, 1]",
            r"annotations\[1\]\):.*its `bbox` contains a value that is not a finite number",
        ),
        ("annotation['bbox'] = [0, 1]", r"annotations\[1\]\):.*its `bbox` must have four numbers \[left"),
        ("annotation['bbox'] = [0, 10**400, 1, 1]", r"annotations\[1\]\):.*its `bbox` must have four numbers \[left"),
        ("annotation['segmentation'] = [[1, 1, 2, 10**400, 3, 3]]", "polygon 0 must be a flat"),
        ("instances['categories'][0]['name'] = '\\ud800'", r"categories\[0\]: the name is not text"),
        ("refs[0]['sentences'][0]['sent'] = '\\udfff'", r"sentences\[0\] is not in UTF-8"),
        ("refs[0]['split'] = 'objects'", r"'objects' is no name of a split"),
        ("refs[1]['image_id'] = [[]]", r"row 1 \(ref_id 2\): image_id list, but annotation 12"),
        ("instances['images'][0]['height'] = -4", "must be between 1"),
        ("instances['images'][0]['height'] = 10**9", "must be between 1"),
        ("instances['images'][0]['file_name'] = '../../etc/passwd'", r"the image ../../etc/passwd is not in"),
        ("del instances['annotations']", r"no list 'annotations'"),
        ("instances.clear()", r"no list 'images'"),
        ("refs.clear()", "was not built because its file contains no refs"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, home: Path, change: str, message: str) -> None:
    annotations = refer_release.write(tmp_path, *break_(change))
    with pytest.raises(DatasetError, match=message):
        build(annotations, tmp_path / "images")
    assert not dataset_folder("refcoco").exists()


def test_all_problems_are_told_at_once(tmp_path: Path, home: Path) -> None:
    refs, instances = break_("refs[0]['ann_id'] = 998; refs[1]['ann_id'] = 999; annotation['segmentation'] = []")
    with pytest.raises(
        DatasetError, match=r"(?s)the number of invalid rows is 2.*998.*999.*Rows are counted from 0"
    ) as caught:
        build(refer_release.write(tmp_path, refs, instances))
    assert "\n  - " in str(caught.value)


def test_a_broken_distractor_is_a_note_not_an_error(tmp_path: Path, home: Path) -> None:
    refs, instances = break_("refs.pop(1); annotation['segmentation'] = [[1, 1, 2, 2]]")
    manifest = build(refer_release.write(tmp_path, refs, instances), tmp_path / "images")
    assert any("annotations[1] (id 12)" in note for note in manifest.notes)
    assert manifest.objects == 2


def test_an_older_build_survives_a_failed_one(tmp_path: Path, home: Path) -> None:
    good = build(refer_release.write(tmp_path / "good", *refer_release.content()))
    with pytest.raises(DatasetError):
        build(refer_release.write(tmp_path / "bad", *break_("annotation['segmentation'] = []")))
    assert len(load_samples("refcoco/val")) == good.splits["val"].expressions
    assert [p.name for p in dataset_folder("refcoco").parent.iterdir()] == ["refcoco"]


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch refbench-was-here",)


@pytest.mark.parametrize("protocol", range(5))
def test_malicious_pickles_are_refused(
    tmp_path: Path, home: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refs, instances = refer_release.content()
    annotations = refer_release.write(tmp_path, [*refs, Evil()], instances, protocol)
    with pytest.raises(DatasetError, match="The file is damaged"):
        build(annotations)
    assert not (tmp_path / "refbench-was-here").exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02P1\n.",
        b"\x82\x01.",
        # Claims that would make a reader allocate gigabytes: a memo index and three lengths.
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"T" + struct.pack("<i", 2**30) + b"x.",
        b"I" + b"9" * 5000 + b"\n.",
        b"",
        b"not a pickle at all",
    ],
)
def test_forged_opcodes(tmp_path: Path, home: Path, payload: bytes) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    (annotations / "refcoco" / "refs(unc).p").write_bytes(payload)
    with pytest.raises(DatasetError, match=r"refs\(unc\)\.p"):
        build(annotations)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_mutated_pickles_never_escape(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(refer_release.content()[0], protocol=data.draw(st.sampled_from([0, 2, 4]))))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    unpickler = pickles._PlainUnpickler(io.BytesIO(bytes(content)), encoding="utf-8", errors="surrogateescape")
    try:
        unpickler.load()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (any refusal is fine; what may not happen is a call or a crash)
        pass


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_files_cut_short(tmp_path: Path, home: Path, name: str, share: float) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    path = annotations / "refcoco" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DatasetError, match=r"(copy it again|is refused)"):
        build(annotations)


def test_numbers_too_long_to_read(tmp_path: Path, home: Path) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    (annotations / "refcoco" / "instances.json").write_text('{"images": [' + "9" * 5000 + "]}")
    with pytest.raises(DatasetError, match="contains a number that"):
        build(annotations)


def test_the_refs_of_another_dataset_are_refused(tmp_path: Path, home: Path) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    with pytest.raises(DatasetError, match=r"file of this dataset \(refs\(umd\)\.p\); a dataset that is"):
        build(annotations / "refcoco" / "refs(unc).p", dataset="refcocog-umd")


@pytest.mark.parametrize("place", ["", "train2014", "images/train2014", "images/mscoco/images/train2014"])
def test_images_are_found_where_releases_keep_them(tmp_path: Path, home: Path, place: str) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    folder = tmp_path / "elsewhere"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "images").rename(folder / place)
    build(annotations, folder)
    assert Path(load_samples("refcoco/val")[0].image_path).is_file()


def test_missing_files_and_options(tmp_path: Path, home: Path) -> None:
    with pytest.raises(DatasetError, match="pass --annotations"):
        build_dataset("refcoco", refer.build, Sources(), silent)
    with pytest.raises(
        DatasetError, match=r"contains neither refcoco/refs\(unc\)\.p nor refs\(unc\)\.p; pass the folder of"
    ):
        build(tmp_path)
    annotations = refer_release.write(tmp_path, *refer_release.content())
    (annotations / "refcoco" / "instances.json").unlink()
    with pytest.raises(DatasetError, match=r"instances.json does not exist"):
        build(annotations)


def bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "COCO_train2014_000000000002.jpg is not in"),
        ("empty", r"is empty \(0 bytes\)"),
        ("text", "is not an image in the format JPEG"),
        ("size", r"has the size \(40, 50\) \(height, width\), but the annotations state"),
        ("bomb", r"refused|is \(60000, 60000\)"),
    ],
)
def test_images_that_cannot_be_used(tmp_path: Path, home: Path, what: str, message: str) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    path = tmp_path / "images" / "COCO_train2014_000000000002.jpg"
    if what == "missing":
        path.unlink()
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("<html>404 not found</html>")
    elif what == "size":
        Image.new("RGB", (50, 40)).save(path)
    else:
        bomb(path)
    with pytest.raises(DatasetError, match=message) as caught:
        build(annotations, tmp_path / "images")
    assert "row 2 (ref_id 3)" in str(caught.value)
