"""`refbench export`: read by the programs it is meant for, and back by refbench to the same fingerprint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from pycocotools.coco import COCO

from refbench.datasets.builders import exported
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.exporters import WRITERS, export
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.storage.manifest import split_fingerprint
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects, load_samples

Call = Callable[..., subprocess.CompletedProcess[str]]
ADDRESSES = [
    "snapshots/test", "refcoco/val", "grefcoco/testB", "lvis/val-instance", "sginw-Fruits/train_10shot",
    "reasonseg/val",
]  # fmt: skip


@pytest.fixture
def built(tmp_path: Path, home: Path, test_data: Path) -> Path:
    """Masks with holes, codes, crowds, ignored regions, nothing meant, and ids that are no integers."""
    rows: list[tuple[str, Path | None, Path | None]] = [
        ("snapshots", None, None),
        ("refcoco", test_data / "photos" / "refer", test_data / "photos" / "images"),
        ("grefcoco", mini.write_grefcoco(tmp_path / "g", *mini.grefs()), None),
        ("lvis", mini.write_lvis(tmp_path / "l", mini.lvis()), None),
        ("sginw-Fruits", mini.write_sginw(tmp_path / "s", mini.sginw(), splits=("train_10shot",)), None),
        ("reasonseg", mini.write_reasonseg(tmp_path / "r", mini.reasonseg()), None),
    ]
    for dataset, source, images in rows:
        build_dataset(dataset, load("builders", dataset), Sources(source, images), silent)
    return tmp_path


@pytest.mark.parametrize("form", list(WRITERS))
@pytest.mark.parametrize("address", ADDRESSES)
def test_the_way_there_and_back(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, form: str
) -> None:
    dataset = address.partition("/")[0]
    out = tmp_path / "out"
    files = export(address, form, out, False, silent)
    assert all(f.is_file() for f in files)
    wanted = split_fingerprint(address)
    before = [o for o in load_objects(dataset) if o.image_id in {s.image_id for s in load_samples(address)}]
    monkeypatch.setenv("REFBENCH_HOME", str(tmp_path / "elsewhere"))
    build_dataset(dataset, exported.build, Sources(out), silent)
    assert split_fingerprint(address) == wanted
    assert load_objects(dataset) == before


def test_pycocotools_reads_the_coco_json(built: Path, tmp_path: Path) -> None:
    for address in ADDRESSES:
        out = tmp_path / address.replace("/", "-")
        path = export(address, "coco", out, False, silent)[0]
        coco = COCO(str(path))
        objects = {o.ann_id: o for o in load_objects(address.partition("/")[0])}
        assert coco.anns
        for row in coco.anns.values():
            # What detectron-style loaders ask of a row.
            assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"} <= set(row)
            assert row["category_id"] in coco.cats
            mask = objects[row["source_id"]].mask
            if mask.area:
                assert np.array_equal(coco.annToMask(row).astype(bool), mask.to_array())
        content = json.loads(path.read_text())
        assert all(isinstance(i["id"], int) and i["height"] > 0 for i in content["images"])
        assert [s["expression"] for s in content["samples"]] == [s.expression for s in load_samples(address)]


def test_datasets_loads_the_folder_with_typed_features(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="reading it back needs pip install 'refbench[hub]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    out = tmp_path / "out"
    export("refcoco/val", "hf", out, True, silent)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["val"]
    samples = load_samples("refcoco/val")
    assert [r["sample_id"] for r in loaded] == [s.sample_id for s in samples]
    features = loaded.features
    assert features["no_target"].dtype == "bool"
    assert features["height"].dtype == "int32"
    assert type(features["image"]).__name__ == "Image"
    assert features["box_xywh"].length == 4
    assert loaded[0]["polygons"] == [list(p) for p in samples[0].polygons]
    assert loaded[0]["image"].size == (samples[0].width, samples[0].height)
    objects = datasets.load_dataset(str(out), "objects", cache_dir=str(tmp_path / "cache"))["val"]
    assert len(objects) == len([o for o in load_objects("refcoco") if o.image_id in {s.image_id for s in samples}])
    card = (out / "README.md").read_text()
    assert card.startswith("---\npretty_name:")
    assert split_fingerprint("refcoco/val") in card
    # A split with a hyphen in its name is a split there too.
    other = tmp_path / "lvis"
    export("lvis/val-instance", "hf", other, False, silent)
    assert len(datasets.load_dataset(str(other), cache_dir=str(tmp_path / "cache"))["val_instance"]) == 4


@pytest.mark.slow
def test_mlcroissant_validates_and_reads_the_records(built: Path, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    program = Path(sys.executable).with_name("mlcroissant")
    for address in ADDRESSES:
        out = tmp_path / address.replace("/", "-")
        export(address, "croissant", out, False, silent)
        done = subprocess.run(
            [program, "validate", "--jsonld", str(out / "croissant.json")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        # Neither errors nor warnings.
        assert "WARNING" not in done.stderr
        assert "Found the following" not in done.stderr
        dataset = mlcroissant.Dataset(jsonld=str(out / "croissant.json"))
        rows = list(dataset.records("samples"))
        samples = load_samples(address)
        assert [r["samples/expression"].decode() for r in rows] == [s.expression for s in samples]
        assert [r["samples/no_target"] for r in rows] == [s.no_target for s in samples]


def test_the_photographs_are_found_again(built: Path, tmp_path: Path, test_data: Path, home: Path) -> None:
    wanted = [Path(s.image_path).name for s in load_samples("refcoco/val")]
    export("refcoco/val", "jsonl", tmp_path / "out", False, silent)
    build_dataset("refcoco", exported.build, Sources(tmp_path / "out"), silent)
    assert {s.image_path for s in load_samples("refcoco/val")} == {""}
    images = test_data / "photos" / "images"
    build_dataset("refcoco", exported.build, Sources(tmp_path / "out", images), silent)
    samples = load_samples("refcoco/val")
    assert [Path(s.image_path).name for s in samples] == wanted
    assert all(Path(s.image_path).is_file() for s in samples)


def test_photographs_travel_in_the_table(built: Path, tmp_path: Path, home: Path, test_data: Path) -> None:
    before = {s.sample_id: Path(s.image_path).read_bytes() for s in load_samples("refcoco/val")}
    export("refcoco/val", "hf", tmp_path / "out", True, silent)
    build_dataset("refcoco", exported.build, Sources(tmp_path / "out"), silent)
    samples = load_samples("refcoco/val")
    assert {s.sample_id: Path(s.image_path).read_bytes() for s in samples} == before
    assert all(str(home) in s.image_path for s in samples)


def test_photographs_that_an_export_does_not_name(built: Path, tmp_path: Path, test_data: Path) -> None:
    export("grefcoco/val", "jsonl", tmp_path / "out", False, silent)
    with pytest.raises(DatasetError, match="lists no images because it was built without images"):
        build_dataset("grefcoco", exported.build, Sources(tmp_path / "out", test_data / "photos" / "images"), silent)


def test_a_rebuild_tells_which_splits_went(built: Path, tmp_path: Path) -> None:
    export("refcoco/val", "jsonl", tmp_path / "out", False, silent)
    manifest = build_dataset("refcoco", exported.build, Sources(tmp_path / "out"), silent)
    assert "it replaced a build that also had testA, testB; build those splits again" in manifest.notes


@pytest.mark.slow
def test_the_command(built: Path, tmp_path: Path, refbench: Call) -> None:
    out = tmp_path / "out"
    done = refbench("export", "grefcoco/val", "--format", "jsonl", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert [Path(f).name for f in json.loads(done.stdout)["files"]] == [
        "samples.jsonl", "objects.jsonl", "refbench.json",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["no_target"] for line in lines] == [False, True, True]
    again = refbench("export", "grefcoco/val", "--format", "jsonl", "--out", out)
    assert again.returncode == 3
    assert "exists and is not empty" in again.stderr
    back = refbench("build", "grefcoco", "--annotations", out, "--json", REFBENCH_HOME=str(tmp_path / "other"))
    assert json.loads(back.stdout)["splits"]["val"]["fingerprint"] == split_fingerprint("grefcoco/val")
    assert refbench("build", "grefcoco", "--annotations", out, "-o", "crowd=use").returncode == 2
    wrong = refbench("export", "grefcoco/val", "--format", "coco", "--out", tmp_path / "x", "--with-images")
    assert "--with-images works only with --format hf" in wrong.stderr
    bare = refbench("export", "grefcoco/val", "--format", "hf", "--out", tmp_path / "y", "--with-images")
    assert "was built without images" in bare.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(dataset="lvis"), "is an export of lvis, not of grefcoco"),
        (lambda d: d.update(layout=9), "is not an export description that this version of refbench can read"),
        (lambda d: d.update(split="../up"), r": '\.\./up' is not a valid"),
        (lambda d: d.update(format="zip"), ": unknown format 'zip'"),
        (lambda d: d.update(fingerprint="0" * 64), "the fingerprints differ"),
        (lambda d: d["files"].update({"../evil": "0"}), "which is outside the folder of the export"),
        (lambda d: d["files"].update({"/etc/passwd": "0"}), "which is outside the folder of the export"),
        (lambda d: d.update(files={}), "lists no files"),
        (lambda d: d["files"].update({"more.jsonl": "0"}), "more.jsonl is missing"),
    ],
)
def test_exports_that_were_tampered_with(
    tmp_path: Path, home: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    annotations = mini.write_grefcoco(tmp_path / "g", *mini.grefs())
    build_dataset("grefcoco", load("builders", "grefcoco"), Sources(annotations), silent)
    out = tmp_path / "out"
    export("grefcoco/val", "jsonl", out, False, silent)
    about = json.loads((out / "refbench.json").read_text())
    change(about)
    (out / "refbench.json").write_text(json.dumps(about))
    with pytest.raises(DatasetError, match=message):
        build_dataset("grefcoco", exported.build, Sources(out), silent)


def test_a_changed_line_is_found(tmp_path: Path, home: Path) -> None:
    annotations = mini.write_grefcoco(tmp_path / "g", *mini.grefs())
    build_dataset("grefcoco", load("builders", "grefcoco"), Sources(annotations), silent)
    out = tmp_path / "out"
    export("grefcoco/val", "jsonl", out, False, silent)
    path = out / "samples.jsonl"
    path.write_text(path.read_text().replace("both of them", "both of us"))
    with pytest.raises(DatasetError, match="is not the file that was exported"):
        build_dataset("grefcoco", exported.build, Sources(out), silent)
