"""Files as people really have them: gaps that their authors know of, text in old encodings, images elsewhere."""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures as mini
import pytest
import refer_release

from refbench import load_samples
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.pickles import read_plain_pickle
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.storage.manifest import Manifest
from refbench.storage.progress import silent

Cli = Callable[..., subprocess.CompletedProcess[str]]


def build(dataset: str, annotations: Path, images: Path | None = None) -> Manifest:
    return build_dataset(dataset, load("builders", dataset), Sources(annotations, images), silent)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["grefcoco", "refzom", "refcoco"])
def test_refs_without_sentences_are_left_out_and_counted(
    tmp_path: Path, home: Path, refbench: Cli, dataset: str
) -> None:
    make, write = {
        "grefcoco": (mini.grefs, mini.write_grefcoco),
        "refzom": (mini.refzom, mini.write_refzom),
        "refcoco": (refer_release.content, refer_release.write),
    }[dataset]
    refs, instances = make()
    whole = build(dataset, write(tmp_path / "whole", refs, instances))
    split = refs[0]["split"]
    silent_ones = []
    for k, ref_id in enumerate((900, 901, 902)):
        ref = {**refs[0], "ref_id": ref_id, "sentences": [], "sent_ids": []}
        if k == 2:
            # One of them names what is not there: it asks nothing, so nothing hangs on it.
            ref["ann_id"] = [4711] if isinstance(ref["ann_id"], list) else 4711
        silent_ones.append(ref)
    manifest = build(dataset, write(tmp_path / "gaps", [*silent_ones[:2], *refs, silent_ones[2]], instances))
    assert manifest.fingerprint == whole.fingerprint
    assert manifest.splits[split].refs_without_sentences == 3
    assert f"3 refs have no sentences and are left out: {split} 3" in manifest.notes
    assert "refs_without_sentences" not in whole.to_json()["splits"][split]
    told = json.loads(refbench("verify", dataset, "--json").stdout)["checks"]
    assert [c["found"] for c in told if c["what"] == "refs without sentences"] == ["3"]


def in_python_2(text: bytes) -> bytes:
    """A pickle of a byte string as Python 2 wrote it, protocol 2."""
    return b"\x80\x02U" + bytes([len(text)]) + text + b"q\x00."


@pytest.mark.parametrize("text", ["plain", "caf\u00e9", "na\u00efve \u2019", "\u4f60\u597d", ""])
def test_byte_strings_of_python_2_are_utf8(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.p").write_bytes(in_python_2(text.encode()))
    assert read_plain_pickle(tmp_path / "a.p") == text
    (tmp_path / "a.p").write_bytes(b"S" + repr(text.encode())[1:].encode() + b"\np0\n.")
    assert read_plain_pickle(tmp_path / "a.p") == text


@pytest.mark.parametrize("text", ["\u4f60\u597d".encode("gbk"), "caf\u00e9".encode("latin1"), b"\xff\xfea\x00"])
def test_text_in_another_encoding_is_refused_with_its_row(tmp_path: Path, home: Path, text: bytes) -> None:
    refs, instances = refer_release.content()
    refs[1]["sentences"][0]["sent"] = "MARK"
    annotations = refer_release.write(tmp_path, refs, instances, 2)
    path = annotations / "refcoco" / "refs(unc).p"
    mark = b"X\x04\x00\x00\x00MARK"
    assert mark in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(mark, b"U" + bytes([len(text)]) + text))
    with pytest.raises(DatasetError, match=r"refs\(unc\).p row 1 \(ref_id 2\): sentences\[0\] is not in UTF-8"):
        build("refcoco", annotations)


def test_a_code_page_is_told(tmp_path: Path, home: Path) -> None:
    content = {**mini.reasonseg(), "text": ["the caf\u00e9\u2019s cup"]}
    manifest = build("reasonseg", mini.write_reasonseg(tmp_path / "a", content, "cp1252"))
    assert manifest.notes == ["2 files are not in UTF-8 and were read in code page 1252, as LISA reads them"]
    assert build("reasonseg", mini.write_reasonseg(tmp_path / "b", content)).notes == []


def with_names(rename: Callable[[str], str]) -> tuple[Any, Any]:
    refs, instances = refer_release.content()
    for image in instances["images"]:
        image["file_name"] = rename(image["file_name"])
    return refs, instances


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: f"train2014/{n}",
        lambda n: f"train2014\\{n}",
        lambda n: f"./train2014/{n}",
        lambda n: f"/data/coco/images/train2014/{n}",
        lambda n: f"C:\\coco\\train2014\\{n}",
        lambda n: f"COCO/train2014/{n}",
    ],
)
@pytest.mark.parametrize("place", ["train2014", ""])
def test_photographs_are_found_where_their_names_lead(
    tmp_path: Path, home: Path, place: str, rename: Callable[[str], str]
) -> None:
    annotations = refer_release.write(tmp_path, *with_names(rename))
    images = tmp_path / "coco"
    (images / place).mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "images").iterdir():
        path.rename(images / place / path.name)
    manifest = build("refcoco", annotations, images)
    assert all(Path(s.image_path).parent == images / place for s in load_samples("refcoco/val"))
    assert manifest.notes == []


def test_photographs_under_their_names_of_2017(tmp_path: Path, home: Path) -> None:
    annotations = refer_release.write(tmp_path, *refer_release.content())
    images = tmp_path / "coco" / "train2017"
    images.mkdir(parents=True)
    for path in (tmp_path / "images").iterdir():
        path.rename(images / path.name.removeprefix("COCO_train2014_"))
    manifest = build("refcoco", annotations, tmp_path / "coco")
    assert load_samples("refcoco/val")[0].image_path == str(images / "000000000001.jpg")
    said = "2 images were found under their names in another COCO release (the same images)"
    assert manifest.notes == [said]
    # And the other way round.
    back = refer_release.write(tmp_path / "back", *with_names(lambda n: n.removeprefix("COCO_train2014_")))
    assert build("refcoco", back, tmp_path / "back" / "images").notes == [said]


def test_one_photograph_is_not_taken_for_two(tmp_path: Path, home: Path) -> None:
    folders = iter("ab")
    refs, instances = with_names(lambda n: f"{next(folders)}/same.jpg")
    instances["images"][1] |= {"height": 60, "width": 80}
    annotations = refer_release.write(tmp_path, refs, instances)
    (tmp_path / "images" / "COCO_train2014_000000000001.jpg").rename(tmp_path / "images" / "same.jpg")
    with pytest.raises(DatasetError, match=r"same.jpg matches the two file names a/same.jpg and b/same.jpg"):
        build("refcoco", annotations, tmp_path / "images")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\x.jpg", "train2014/../../x.jpg", "/etc/passwd", "a\0b.jpg", "/"]
)
def test_names_do_not_lead_out_of_the_folder(tmp_path: Path, home: Path, name: str) -> None:
    (tmp_path / "x.jpg").write_bytes(mini.picture(1))
    annotations = refer_release.write(tmp_path, *with_names(lambda n: name))
    with pytest.raises(DatasetError, match=r"the image .* is not in"):
        build("refcoco", annotations, tmp_path / "images")


@pytest.mark.parametrize("flat", [False, True])
def test_sets_with_folders_in_their_names(tmp_path: Path, home: Path, flat: bool) -> None:
    content = mini.sginw()
    root = mini.write_sginw(tmp_path, content)
    place = root / "Fruits" / "valid"
    for image in content["images"]:
        plain = image["file_name"]
        image["file_name"] = f"4/x-{plain}"
        target = place / ("" if flat else "4") / f"x-{plain}"
        target.parent.mkdir(exist_ok=True)
        (place / plain).rename(target)
    (place / "_annotations_min1cat.coco.json").write_text(json.dumps(content))
    manifest = build("sginw-Fruits", root)
    assert manifest.notes == []
    assert all(Path(s.image_path).is_file() for s in load_samples("sginw-Fruits/valid"))


def test_photographs_that_are_not_there_are_told(tmp_path: Path, home: Path) -> None:
    root = mini.write_sginw(tmp_path, mini.sginw())
    for path in root.rglob("*.jpg"):
        path.unlink()
    notes = build("sginw-Fruits", root).notes
    place = root / "Fruits" / "valid"
    assert f"valid: none of its images is in {place}; the first is named fruit-1.jpg" in notes


def test_lvis_without_addresses(tmp_path: Path, home: Path) -> None:
    content = mini.lvis()
    for image in content["images"]:
        image["file_name"] = image.pop("coco_url").rpartition("/")[2]
    path = mini.write_lvis(tmp_path, content)
    build("lvis", path, tmp_path / "images")
    assert Path(load_samples("lvis/val-instance")[0].image_path).name == "000000000001.jpg"
    content["images"][0]["coco_url"] = None
    build("lvis", mini.write_lvis(tmp_path, content), tmp_path / "images")


def test_pickles_stay_plain(tmp_path: Path) -> None:
    refs, _ = refer_release.content()
    for protocol in range(5):
        (tmp_path / "a.p").write_bytes(pickle.dumps(refs, protocol=protocol))
        assert read_plain_pickle(tmp_path / "a.p") == refs
