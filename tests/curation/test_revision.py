"""Apply, diff, export: byte for byte without a model, the effect on a ranking restated, the published features."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from refbench import load_samples, run, score
from refbench.curation.differences import changes_table, diff
from refbench.curation.folder import load_items
from refbench.curation.history import why
from refbench.curation.ledger import read_ledger
from refbench.curation.publication import export_curated
from refbench.curation.revision import apply
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError, RunError
from refbench.plugins.loading import load
from refbench.runs.folder import RunFolder
from refbench.storage.manifest import dataset_folder, read_manifest
from refbench.storage.progress import silent

Cli = Callable[..., subprocess.CompletedProcess[str]]
SOURCE = "scenes-hurried/val"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def own(hurried_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own with links to the two datasets, so that new ones can be written beside them."""
    home = tmp_path / "home"
    (home / "datasets").mkdir(parents=True)
    for name in ("scenes", "scenes-hurried"):
        (home / "datasets" / name).symlink_to(hurried_home / "datasets" / name)
    monkeypatch.setenv("REFBENCH_HOME", str(home))
    return home


@pytest.fixture
def ledger(hurried_home: Path) -> Path:
    return hurried_home / "curation" / "scenes-hurried-val" / "ledger.parquet"


@pytest.mark.slow
def test_the_same_bytes_without_torch_or_opencv(own: Path, ledger: Path) -> None:
    manifest = apply(SOURCE, ledger, "cleaned")
    first = files(dataset_folder("cleaned"))
    assert set(first) == {"val.parquet", "objects.parquet", "manifest.json", "ledger.parquet"}
    blocked = (
        "import sys\n"
        "for name in ('torch', 'cv2', 'transformers', 'matplotlib.pyplot'): sys.modules[name] = None\n"
        "from refbench.cli.main import main\n"
        f"main(['curate', 'apply', {SOURCE!r}, {str(ledger)!r}, '--as', 'cleaned'])\n"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files(dataset_folder("cleaned")) == first
    assert read_manifest("cleaned").fingerprint == manifest.fingerprint
    rows = read_ledger(ledger).by_id()
    samples = load_samples("cleaned/val")
    assert {s.sample_id.split("/", 1)[1] for s in samples} == {
        i.split("/", 1)[1] for i, r in rows.items() if r.item == "expression" and r.action == "kept"
    }
    # Images are those of the source, found from wherever the home lies.
    assert all(Path(s.image_path).is_file() for s in samples)


def test_what_apply_refuses(own: Path, ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is a ledger of scenes-hurried/val"):
        apply("scenes/val", ledger, "cleaned")
    with pytest.raises(DatasetError, match="the name of a published dataset"):
        apply(SOURCE, ledger, "refcoco-m")
    with pytest.raises(DatasetError, match="is not a valid dataset name"):
        apply(SOURCE, ledger, "../cleaned")
    table = pq.read_table(ledger)
    actions = ["dropped" if a == "changed" else a for a in table["action"].to_pylist()]
    place = table.column_names.index("action")
    edited = tmp_path / "edited.parquet"
    pq.write_table(table.set_column(place, table.schema.field("action"), [actions]), edited)
    with pytest.raises(DatasetError, match="was edited after refbench wrote it"):
        apply(SOURCE, edited, "cleaned")
    assert not dataset_folder("cleaned").exists()
    manifest = apply(SOURCE, edited, "cleaned", accept_edits=True)
    assert "the ledger was edited by hand" in manifest.notes
    build_dataset("snapshots", load("builders", "snapshots"), Sources(), silent)
    (own / "datasets" / "snapshots").rename(own / "datasets" / "mine")
    with pytest.raises(DatasetError, match=r"already exists \("):
        apply(SOURCE, ledger, "mine")
    with pytest.raises(DatasetError, match="is the name of the source itself"):
        apply(SOURCE, ledger, "scenes-hurried")
    assert apply(SOURCE, ledger, "mine", replace=True).dataset == "mine"
    nothing = table.set_column(place, table.schema.field("action"), [["dropped"] * table.num_rows])
    pq.write_table(nothing, edited)
    with pytest.raises(DatasetError, match="drops every expression"):
        apply(SOURCE, edited, "empty", accept_edits=True)


@pytest.mark.slow
def test_diff_tells_masks_and_ranking(own: Path, ledger: Path, tmp_path: Path, refbench: Cli) -> None:
    apply(SOURCE, ledger, "cleaned")
    folders = []
    for name, options in (("center", {}), ("everything", {}), ("noisy-oracle", {"shift": "3"}), ("noisy-oracle", {})):
        folders.append(run(name, SOURCE, options=options, out=tmp_path / f"run{len(folders)}").folder)
    found = diff(SOURCE, "cleaned/val", folders)
    rows = read_ledger(ledger).by_id()
    masks = {i.split("/", 2)[2]: r for i, r in rows.items() if r.item == "mask"}
    changed = {k for k, r in masks.items() if r.action == "changed"}
    assert {m.item for m in found.masks if m.kind not in ("same", "dropped")} == changed
    assert {m.item for m in found.masks if m.kind == "same"} == {k for k, r in masks.items() if r.action == "kept"}
    for m in found.masks:
        if m.first is None or m.second is None:
            continue
        a, b = m.first.to_array(), m.second.to_array()
        assert m.iou == pytest.approx((a & b).sum() / (a | b).sum())
    assert found.expressions["reworded"] == found.expressions["added"] == 0
    assert found.expressions["kept"] == len(load_samples("cleaned/val"))
    assert set(changes_table(found)["kind"]) == {m.kind for m in found.masks}
    # The whole first version is what `score` says; the second is what a run on it says.
    for folder, ranked in zip(folders, found.runs, strict=True):
        whole = score(folder, out=tmp_path / "scored").summaries["refbench"].metrics
        assert ranked.first["cumulative_iou"] == whole["cumulative_iou"]
    again = run("center", "cleaned/val", out=tmp_path / "again").folder
    direct = score(again, out=tmp_path / "scored").summaries["refbench"].metrics
    assert found.runs[0].second == {n: direct[n] for n in found.runs[0].second}
    # The middle step: the old masks, for what is left; the oracle drew these.
    assert found.runs[3].left["cumulative_iou"].value == pytest.approx(100.0)
    assert found.runs[3].second["cumulative_iou"].value < 99
    assert found.ranking("first", "mean_iou")[0] == "noisy-oracle"
    told = refbench("curate", "diff", SOURCE, "cleaned/val", "--run", folders[0], "--json", "--csv", tmp_path / "d.csv")
    content = json.loads(told.stdout)
    assert content["masks"] == found.kinds()
    assert content["rankings"]["cumulative_iou"]["second"] == ["center"]
    assert len((tmp_path / "d.csv").read_text().splitlines()) == len(found.masks) + 1
    with pytest.raises(RunError, match="takes runs on cleaned/val"):
        diff("cleaned/val", SOURCE, folders[:1])
    RunFolder(folders[0]).written[-1].unlink()
    with pytest.raises(RunError, match="lacks part-"):
        diff(SOURCE, "cleaned/val", folders[:1])
    build_dataset("snapshots", load("builders", "snapshots"), Sources(), silent)
    with pytest.raises(DatasetError, match="have no expression in common"):
        diff(SOURCE, "snapshots/test")


def test_the_export_has_the_published_features(own: Path, ledger: Path, tmp_path: Path, test_data: Path) -> None:
    apply(SOURCE, ledger, "cleaned")
    out = tmp_path / "export"
    export_curated("cleaned/val", out)
    # The default cache is shared, and would give what an earlier run of the tests has exported.
    loaded = datasets.load_dataset(str(out), split="validation", cache_dir=str(tmp_path / "cache"))
    published = next((test_data / "photos" / "refcoco-m-schema").rglob("*.parquet"))
    theirs = datasets.Dataset.from_parquet(str(published)).features
    assert loaded.features == theirs
    images = load_items("cleaned/val")
    assert len(loaded) == len(images)
    row, image = loaded[0], images[0]
    assert np.asarray(row["image"]).shape == (image.height, image.width, 3)
    assert [s["sentences"] for s in row["samples"]] == [[x.expression for x in t.samples] for t in image.masks]
    # It is built again, as a published set is: the same masks for the same expressions.
    build_dataset("refcoco-m", load("builders", "refcoco-m"), Sources(out), silent)
    ours = {(s.expression, s.target) for s in load_samples("cleaned/val") if not s.no_target}
    assert {(s.expression, s.target) for s in load_samples("refcoco-m/val")} == ours
    card = (out / "README.md").read_text()
    assert f"{len(images)} images" in card
    assert all((out / name).stat().st_size > 10_000 for name in ("sheets/changed.jpg", "sheets/dropped.jpg"))
    assert (out / "ledger.parquet").read_bytes() == ledger.read_bytes()
    with pytest.raises(DatasetError, match="is not empty"):
        export_curated("cleaned/val", out)
    with pytest.raises(DatasetError, match="was not made by"):
        export_curated(SOURCE, tmp_path / "other")


def test_the_story_of_one_item(own: Path, ledger: Path, hurried_home: Path) -> None:
    rows = read_ledger(ledger)
    changed = next(r for r in rows.rows if r.action == "changed")
    story = why(changed.item_id, ledger)
    assert story.row == changed
    assert story.proposals
    assert any(p.mask == changed.mask for p in story.proposals)
    apply(SOURCE, ledger, "cleaned")
    # The dataset brings its ledger, but no folder of a curation.
    alone = why(changed.item_id, dataset_folder("cleaned"))
    assert alone.row == changed
    assert alone.proposals == ()
    # Not even the source is needed for the row.
    (own / "datasets" / "scenes-hurried").unlink()
    assert why(changed.item_id, dataset_folder("cleaned")).row == changed
    with pytest.raises(DatasetError, match="did you mean"):
        why(changed.item_id.replace("hurried", "hurrid"), ledger)
