"""SA-Co in its true layout: what it becomes, what is refused, and a run on it scored by cgF1 of three annotators."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import miniatures as mini
import pytest

from refbench import load_samples, run
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.sa_co import FILES
from refbench.datasets.verification import verify
from refbench.errors import DatasetError, PredictionError
from refbench.plugins.loading import load
from refbench.records import Answer, Sample
from refbench.scoring.detections import write_detections
from refbench.scoring.protocols.coco_files import read_annotations
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects

Cli = Callable[..., subprocess.CompletedProcess[str]]


def build(annotations: Path, dataset: str = "sa-co-gold", splits: tuple[str, ...] = (), **options: Any) -> Any:
    images = annotations.parent.parent / "images" if annotations.is_file() else annotations / "images"
    sources = Sources(annotations, images, splits=splits)
    return build_dataset(dataset, load("builders", dataset), sources, silent, **options)


def test_pairs_become_samples(tmp_path: Path, home: Path) -> None:
    file = mini.write_sa_co(tmp_path, mini.sa_co())
    manifest = build(file)
    split = manifest.splits["crowded-a"]
    # Two phrases of one image are no independent evidence: they share its image.
    assert (split.expressions, split.no_target, split.images) == (4, 1, 2)
    square, nothing, thing, crowd = load_samples("sa-co-gold/crowded-a")
    assert square.sample_id == "sa-co-gold/crowded-a/10/0"
    assert square.image_id == nothing.image_id == "crowded-a-1/1001/metaclip_1.jpeg"
    assert Path(square.image_path).is_file()
    assert square.ann_ids == ("crowded-a-1", "crowded-a-2")
    objects = {o.ann_id: o for o in load_objects("sa-co-gold")}
    both = [objects[i] for i in square.ann_ids]
    assert square.target == both[0].mask.union(both[1].mask)
    # The file's boxes are shares of the image.
    assert [o.box_xywh for o in both] == [o.mask.box_xywh for o in both]
    assert (nothing.expression, nothing.no_target, nothing.target.area) == ("a fish_ball", True, 0)
    assert thing.tags == ()
    assert crowd.tags == ("not-exhaustive", "not-pixel-exhaustive")
    assert objects["crowded-a-4"].crowd
    assert any("1 of 4 pairs are not annotated exhaustively; they are kept" in note for note in manifest.notes)


def test_what_is_not_exhaustive_can_be_skipped(tmp_path: Path, home: Path) -> None:
    manifest = build(mini.write_sa_co(tmp_path, mini.sa_co()), not_exhaustive="skip")
    assert manifest.splits["crowded-a"].expressions == 3
    assert len(load_objects("sa-co-gold")) == 3
    assert any("1 of 4 pairs are not annotated exhaustively; they are skipped" in n for n in manifest.notes)


def test_annotators_stand_apart(tmp_path: Path, home: Path) -> None:
    for annotator in "abc":
        content = mini.sa_co()
        content["annotations"] = content["annotations"][: 1 + "abc".index(annotator)]
        mini.write_sa_co(tmp_path, content, f"gold_crowded_merged_{annotator}_release_test.json")
    assert list(build(tmp_path).splits) == ["crowded-a", "crowded-b", "crowded-c"]
    assert [len(load_samples(f"sa-co-gold/crowded-{a}")[0].ann_ids) for a in "abc"] == [1, 2, 2]
    assert len({o.ann_id for o in load_objects("sa-co-gold")}) == 1 + 2 + 3
    assert list(build(tmp_path, splits=("crowded-b",)).splits) == ["crowded-b"]
    # What is published of the whole does not fit a miniature.
    assert verify("sa-co-gold").state == "differs"


def test_silver_has_one_file_a_domain(tmp_path: Path, home: Path) -> None:
    assert (len(FILES["sa-co-gold"]), len(FILES["sa-co-silver"])) == (21, 10)
    mini.write_sa_co(tmp_path, mini.sa_co(), "silver_droid_merged_test.json")
    mini.write_sa_co(tmp_path, mini.sa_co(), "silver_fathomnet_test.json")
    assert set(build(tmp_path, "sa-co-silver").splits) == {"droid", "fathomnet"}
    with pytest.raises(DatasetError, match="contain no file of sa-co-gold, for example"):
        build(tmp_path, "sa-co-gold")


def test_broken_rows_are_told(tmp_path: Path, home: Path) -> None:
    content = mini.sa_co()
    content["images"][0]["text_input"] = "  "
    content["images"][1]["is_instance_exhaustive"] = "yes"
    content["annotations"][2]["image_id"] = 99
    content["annotations"][3]["segmentation"]["size"] = [3, 3]
    with pytest.raises(DatasetError) as caught:
        build(mini.write_sa_co(tmp_path, content))
    for words in (
        "images[0] (id 10): its `text_input` must be a noun phrase, got '  '",
        "images[1] (id 11): its `is_instance_exhaustive` must be 0 or 1, got 'yes'",
        "annotations[2] (id 3): image 99 is not in the file",
        "annotations[3] (id 4): ",
    ):
        assert words in str(caught.value)


def test_files_are_told_apart_by_their_names(tmp_path: Path, home: Path) -> None:
    file = mini.write_sa_co(tmp_path, mini.sa_co())
    with pytest.raises(DatasetError, match="not a file of sa-co-silver; the files have names such as"):
        build(file, "sa-co-silver")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DatasetError, match="files of the split crowded-a; keep only one of"):
        build(tmp_path)


def test_an_annotation_without_a_pixel_is_counted(tmp_path: Path, home: Path) -> None:
    content = mini.sa_co()
    height, width = mini.SIZES[1]
    content["annotations"][1]["segmentation"] = {"size": [height, width], "counts": [height * width]}
    notes = build(mini.write_sa_co(tmp_path, content)).notes
    assert any("annotations without a pixel, which are left out: 1" in note for note in notes)
    assert load_samples("sa-co-gold/crowded-a")[0].ann_ids == ("crowded-a-1",)


class Exact:
    """Finds the instances of the split it is asked about; for `doubted` with a score that does not count."""

    name = "exact"
    needs_images = False

    def __init__(self, doubted: str = "") -> None:
        self.doubted = doubted

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Answer]:
        masks = {o.ann_id: o.mask for o in load_objects("sa-co-gold")}
        out = []
        for s in samples:
            score = 0.3 if s.expression == self.doubted else 0.8
            out.append(Answer(s.target, instances=[(masks[i], score) for i in s.ann_ids]))
        return out


def score_run(refbench: Cli, folder: Path, *truths: Path, protocol: str = "sa-co") -> subprocess.CompletedProcess[str]:
    given = [part for truth in truths for part in ("--ground-truth", str(truth))]
    return refbench("score", str(folder), *given, "--protocol", protocol, "--json")


def cgf1(refbench: Cli, folder: Path, *truths: Path) -> dict[str, float]:
    done = score_run(refbench, folder, *truths)
    assert done.returncode == 0, done.stderr
    metrics: dict[str, float] = json.loads(done.stdout)["protocols"]["sa-co"]["metrics"]
    return metrics


@pytest.mark.slow
def test_a_run_is_scored_against_each_annotator(refbench: Cli, tmp_path: Path, home: Path) -> None:
    truths = []
    for annotator in "abc":
        content = mini.sa_co()
        if annotator == "a":
            # Who sees one instance where the others see two.
            del content["annotations"][1]
        truths.append(mini.write_sa_co(tmp_path, content, f"gold_crowded_merged_{annotator}_release_test.json"))
    build(tmp_path)
    folder = run(Exact(), "sa-co-gold/crowded-b", out=tmp_path / "run").folder
    assert cgf1(refbench, folder, *truths)["cgF1"] == pytest.approx(100, abs=0.05)
    rows = json.loads((folder / "coco-results.json").read_text())
    # The pair that is not exhaustive is answered too; it does not count.
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(10, 1), (10, 1), (12, 1), (13, 1)]
    alone = cgf1(refbench, folder, truths[0])
    # Two of three detections match; both instances are found: F1 0.8, and presence is told without a mistake.
    assert alone["positive_micro_F1"] == pytest.approx(80, abs=0.05)
    assert alone["IL_MCC"] == pytest.approx(100, abs=0.05)
    doubting = run(Exact("thing"), "sa-co-gold/crowded-b", out=tmp_path / "doubting").folder
    # One of two positive pairs is told, and the negative one: 1 * 1 / sqrt(1 * 2 * 1 * 2).
    assert cgf1(refbench, doubting, *truths)["IL_MCC"] == pytest.approx(50, abs=0.05)


class Failing(Exact):
    """Fails where nothing is there."""

    name = "failing"

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Any]) -> list[Answer]:
        if any(s.no_target for s in samples):
            raise ValueError("no answer")
        return super().segment_samples(samples, images)


@pytest.mark.slow
def test_no_answer_is_not_the_answer_that_nothing_is_there(refbench: Cli, tmp_path: Path, home: Path) -> None:
    truth = mini.write_sa_co(tmp_path, mini.sa_co())
    build(tmp_path)
    failing = run(Failing(), "sa-co-gold/crowded-a", out=tmp_path / "failing", max_failures=4).folder
    refused = score_run(refbench, failing, truth)
    assert refused.returncode == 3
    assert "failed: 1, the first is sa-co-gold/crowded-a/11/0. " in refused.stderr
    assert "sa-co would count these samples as predictions of no target" in refused.stderr
    # AP never counts a pair without instances: there it is told.
    told = score_run(refbench, failing, truth, protocol="coco-ap")
    assert told.returncode == 0
    assert "the first is sa-co-gold/crowded-a/11/0; they count as nothing found" in told.stderr
    some = run(Exact(), "sa-co-gold/crowded-a", out=tmp_path / "some", limit=2).folder
    told = score_run(refbench, some, truth)
    assert "without a sample in the run: 1, the first is 12 ('thing'). sa-co would" in told.stderr
    # Who wants it anyway scores the file.
    assert cgf1(refbench, some / "coco-results.json", truth)["IL_MCC"] == pytest.approx(50, abs=0.05)
    # What nobody annotated exhaustively need not be asked.
    build(tmp_path, not_exhaustive="skip")
    rest = run(Exact(), "sa-co-gold/crowded-a", out=tmp_path / "rest").folder
    assert cgf1(refbench, rest, truth)["cgF1"] == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize("name", ["crowded", "metaclip"])
def test_photographs_lie_as_sam3_has_them(tmp_path: Path, home: Path, name: str) -> None:
    mini.write_sa_co(tmp_path, mini.sa_co())
    (tmp_path / "images" / "1").rename(tmp_path / "elsewhere")
    (tmp_path / "images" / name).mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "images" / name / "1")
    build(tmp_path)
    assert all(Path(s.image_path).is_file() for s in load_samples("sa-co-gold/crowded-a"))
    mini.write_sa_co(tmp_path, mini.sa_co(), "silver_nga_art_merged_test.json")
    (tmp_path / "images" / name).rename(tmp_path / "images" / "nga")
    (tmp_path / "images" / "1").rename(tmp_path / "elsewhere")
    build(tmp_path, "sa-co-silver")
    assert all("/nga/" in s.image_path for s in load_samples("sa-co-silver/nga_art"))


def test_a_file_of_other_phrases_is_refused(tmp_path: Path, home: Path) -> None:
    build(mini.write_sa_co(tmp_path, mini.sa_co()))
    folder = run(Exact(), "sa-co-gold/crowded-a", out=tmp_path / "run").folder
    content = mini.sa_co()
    content["images"][2]["text_input"] = "another thing"
    other = mini.write_sa_co(tmp_path / "other", content)
    with pytest.raises(
        PredictionError,
        match=r"this run: the image .* or the category 'thing' of the sample sa-co-gold/crowded-a/12/0 is missing",
    ):
        write_detections(folder, read_annotations(other))
