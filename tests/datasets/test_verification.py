"""`refbench verify` and the states of `refbench list datasets`."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import miniatures as mini
import pyarrow.parquet as pq
import pytest
import refer_release

from refbench.datasets.builders.base import Sources, build_dataset, questions_fingerprint
from refbench.datasets.catalogue import expected, hub_source, is_commit, known_sha256
from refbench.datasets.verification import DIFFERS, NOTED, state_of, verify
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.plugins.table import TABLE
from refbench.storage.manifest import dataset_folder
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples

Call = Callable[..., subprocess.CompletedProcess[str]]


def build(dataset: str, annotations: Path | None = None) -> None:
    build_dataset(dataset, load("builders", dataset), Sources(annotations), silent)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["refcoco", "refcocog-umd"])
def test_published_splits_are_confirmed(test_data: Path, home: Path, dataset: str) -> None:
    build(dataset, test_data / "whole-splits" / "refer")
    found = verify(dataset)
    assert found.holds
    assert found.state == state_of(dataset) == "partial"
    confirmed = {(c.split, c.what) for c in found.checks if c.status == "ok"}
    assert confirmed >= {("val", w) for w in ("images", "refs", "expressions", "questions", "file")}
    assert {c.split for c in found.checks if c.status == "absent"} == set(expected(dataset).splits) - {"val"}
    # The masks of the test data are stand-ins, so its files are not the published ones; that is told, no fault.
    assert [c.what for c in found.checks if c.status == NOTED] == [
        f"refs({'unc' if dataset == 'refcoco' else 'umd'}).p"
    ]


@pytest.mark.parametrize("dataset", ["scenes", "snapshots"])
def test_what_refbench_ships_is_whole(embedded: Path, dataset: str) -> None:
    found = verify(dataset)
    assert found.state == state_of(dataset) == "whole"


def test_the_hurried_scenes_are_those_that_are_described(hurried: Path) -> None:
    found = verify("scenes-hurried")
    # One split of three was built for the tests.
    assert found.state == "partial"
    assert not [c for c in found.checks if c.status == "differs"]


@pytest.mark.slow
def test_the_command_and_its_exit_codes(test_data: Path, home: Path, refbench: Call) -> None:
    missing = refbench("verify", "refcoco")
    assert missing.returncode == 3
    assert "refcoco has not been built" in missing.stderr
    unknown = refbench("verify", "nope")
    assert unknown.returncode == 2
    assert "unknown dataset 'nope'" in unknown.stderr
    build("refcoco", test_data / "whole-splits" / "refer")
    done = refbench("verify", "refcoco", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["holds"] is True
    strict = refbench("verify", "refcoco", "--complete", "--json")
    assert strict.returncode == 1
    assert json.loads(strict.stdout)["holds"] is False
    build("refcoco+", test_data / "photos" / "refer")
    other = refbench("verify", "refcoco+")
    assert other.returncode == 1
    assert "val\timages\t1500\t2\tdiffers" in other.stdout
    listed = {d["name"]: d["state"] for d in json.loads(refbench("list", "datasets", "--json").stdout)["datasets"]}
    assert (listed["refcoco"], listed["refcoco+"], listed["lvis"]) == ("partial", "differs", "absent")


def test_expressions_of_another_dataset_are_recognised(test_data: Path, tmp_path: Path, home: Path) -> None:
    # RefCOCOg's val under the name of RefCOCO: the same split name, so only the content can tell.
    place = tmp_path / "refcoco"
    shutil.copytree(test_data / "whole-splits" / "refer" / "refcocog", place)
    (place / "refs(umd).p").rename(place / "refs(unc).p")
    build("refcoco", tmp_path)
    remarks = [c.remark for c in verify("refcoco").checks if c.status == DIFFERS]
    assert "these are the expressions of refcocog-umd/val" in remarks


@pytest.mark.slow
def test_a_damaged_table_is_found(test_data: Path, home: Path) -> None:
    build("refcoco", test_data / "whole-splits" / "refer")
    path = dataset_folder("refcoco") / "val.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)
    wrong = {(c.split, c.what) for c in verify("refcoco").checks if c.status == DIFFERS}
    assert wrong == {("val", "file"), ("val", "expressions"), ("val", "questions"), ("", "dataset")}
    path.write_bytes(path.read_bytes()[:5000])
    cut = [(c.split, c.what, c.found) for c in verify("refcoco").checks if c.status == DIFFERS]
    assert cut[0] == ("val", "file", "unreadable")
    path.unlink()
    assert not verify("refcoco").holds


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_found_or_harmless(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    shutil.copytree(embedded / "datasets" / "snapshots", tmp_path / "datasets" / "snapshots")
    monkeypatch.setenv("REFBENCH_HOME", str(tmp_path))
    rng = random.Random(seed)
    for name in ("test.parquet", "objects.parquet"):
        path = tmp_path / "datasets" / "snapshots" / name
        whole = path.read_bytes()
        before = pq.read_table(path)
        for _ in range(150):
            content = bytearray(whole)
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            if verify("snapshots").holds:
                # Statistics and the like: what is read is what was written.
                assert pq.read_table(path).equals(before)
        path.write_bytes(whole)


def test_photographs_that_are_gone(test_data: Path, tmp_path: Path, home: Path) -> None:
    shutil.copytree(test_data / "photos" / "images" / "train2014", tmp_path / "images")
    sources = Sources(test_data / "photos" / "refer", tmp_path / "images")
    build_dataset("refcoco", load("builders", "refcoco"), sources, silent)
    assert [c.status for c in verify("refcoco").checks if c.what == "photographs"] == ["ok"] * 3
    gone = Path(load_samples("refcoco/val")[0].image_path)
    gone.unlink()
    wrong = [c for c in verify("refcoco").checks if c.what == "photographs" and c.status == DIFFERS]
    assert [(c.split, int(c.expected) - int(c.found)) for c in wrong] == [("val", 1)]


def test_nothing_to_compare_with_is_no_confirmation(tmp_path: Path, home: Path) -> None:
    build("grefcoco", mini.write_grefcoco(tmp_path, *mini.grefs()))
    assert state_of("grefcoco") == "differs"
    build("sginw-Fruits", mini.write_sginw(tmp_path, mini.sginw()))
    wrong = [c for c in verify("sginw-Fruits").checks if c.status == DIFFERS]
    assert [(c.what, c.found) for c in wrong] == [("categories", "apple, pear")]
    assert "strawberry" in wrong[0].expected
    content = mini.sginw()
    content["categories"] += [{"id": 10 + k, "name": n} for k, n in enumerate(("lemon", "orange", "strawberry"))]
    build("sginw-Fruits", mini.write_sginw(tmp_path, content))
    assert verify("sginw-Fruits").state == "whole"
    build("reasonseg", mini.write_reasonseg(tmp_path / "r", mini.reasonseg()))
    assert not verify("reasonseg").holds
    build("sginw-Fruits", mini.write_sginw(tmp_path / "other", content, splits=("train",)))
    assert state_of("sginw-Fruits") == "unverified"


@pytest.mark.parametrize("content", ['{"splits": {"val": {}}}', '{"splits": {"val": 3}}', "{", "[]"])
def test_a_broken_manifest_hides_no_other_dataset(embedded: Path, tmp_path: Path, refbench: Call, content: str) -> None:
    shutil.copytree(embedded / "datasets" / "snapshots", tmp_path / "datasets" / "snapshots")
    (tmp_path / "datasets" / "refcoco").mkdir()
    (tmp_path / "datasets" / "refcoco" / "manifest.json").write_text(content)
    done = refbench("list", "datasets", "--json", REFBENCH_HOME=str(tmp_path))
    states = {d["name"]: d["state"] for d in json.loads(done.stdout)["datasets"]}
    assert (states["refcoco"], states["snapshots"]) == ("damaged", "whole")


def test_a_changed_object_is_found(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(embedded, tmp_path / "home")
    monkeypatch.setenv("REFBENCH_HOME", str(tmp_path / "home"))
    path = dataset_folder("snapshots") / "objects.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert {c.what for c in verify("snapshots").checks if c.status == DIFFERS} == {"dataset", "objects"}


def test_questions_do_not_depend_on_order_numbers_or_masks(tmp_path: Path, home: Path) -> None:
    refs, instances = refer_release.content()
    build("refcoco", refer_release.write(tmp_path / "a", refs, instances))
    first = load_samples("refcoco/val")
    for k, ref in enumerate(refs):
        ref["ref_id"] = 900 + k
    instances["annotations"][1]["segmentation"] = [[51.0, 11.0, 70.0, 10.0, 70.0, 40.0]]
    build("refcoco", refer_release.write(tmp_path / "b", refs[::-1], instances))
    second = load_samples("refcoco/val")
    assert [s.sample_id for s in first] != [s.sample_id for s in second]
    assert questions_fingerprint(first) == questions_fingerprint(second)
    assert questions_fingerprint(first[1:]) != questions_fingerprint(first)


def test_every_catalogue_file_is_read() -> None:
    hub = {"refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "refcoco-m", "grefcoco"}
    for dataset in TABLE["builders"]:
        known_sha256(dataset)
        for split in expected(dataset).splits.values():
            assert split.source, dataset
        if dataset not in hub:
            with pytest.raises(DatasetError, match="refbench has no download location for"):
                hub_source(dataset)
            continue
        source = hub_source(dataset)
        assert source.licence
        assert is_commit(source.revision) or dataset == "refcoco-m"
        assert all(f.bytes > 1e6 for f in source.files)
    assert hub_source("grefcoco", "images").repo == "jxu124/refcoco-benchmark"


def test_nothing_published_is_nothing_expected(home: Path, tmp_path: Path) -> None:
    assert expected("mine").splits == {}
    (tmp_path / "sources.toml").write_text("[hub]\nrepo = 'x'\n")
    with pytest.raises(DatasetError, match=r"\]: 'files' is missing or invalid;"):
        hub_source("refcoco", "hub", tmp_path / "sources.toml")
