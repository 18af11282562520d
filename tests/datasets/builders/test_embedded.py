"""`scenes` and `snapshots`: exact, unambiguous, repeatable."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refbench import Mask, load_samples, pair_counts
from refbench.datasets.builders import scenes, snapshots
from refbench.datasets.builders.base import Sources, build_dataset, samples_fingerprint
from refbench.datasets.builders.scenes_language import KINDS
from refbench.errors import DatasetError
from refbench.storage.files import project_data
from refbench.storage.manifest import read_manifest
from refbench.storage.progress import silent
from refbench.storage.samples import load_objects


def test_scenes_have_the_promised_size_and_kinds(embedded: Path) -> None:
    manifest = read_manifest("scenes")
    assert manifest.splits["test"].expressions >= 1000
    assert set(manifest.splits) == {"train", "val", "test"}
    kinds = Counter(s.tags[0] for s in load_samples("scenes/test"))
    assert set(kinds) == {*KINDS, "no_target"}
    assert min(kinds.values()) >= 60


def test_scenes_are_the_same_everywhere(embedded: Path) -> None:
    # Golden: whoever renders `scenes` gets this test split, or has another dataset.
    golden = json.loads((Path(__file__).parents[2] / "golden" / "fingerprints.json").read_text())
    assert {d: read_manifest(d).fingerprint for d in golden} == golden


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first, second = scenes.draw_scene("val", 3), scenes.draw_scene("val", 3)
    assert np.array_equal(first.picture, second.picture)
    assert first.phrases == second.phrases
    assert not np.array_equal(first.picture, scenes.draw_scene("test", 3).picture[:1, :1])
    assert not np.array_equal(scenes.draw_scene("val", 4).picture, first.picture)


def test_masks_are_disjoint_and_match_the_picture(embedded: Path) -> None:
    for index in range(6):
        scene = scenes.draw_scene("test", index)
        covered = sum(o.mask.astype(int) for o in scene.objects)
        assert covered.max() == 1
        stored = np.asarray(Image.open(embedded / "datasets" / "scenes" / "images" / "test" / f"{index:05d}.png"))
        assert np.array_equal(stored, scene.picture)


def words_fit(text: str, drawn: object) -> bool:
    """An independent reading: class, colour and pattern words in an expression fit the object it names."""
    words = set(text.replace("the ", "").split())
    attributes = {"shape": scenes_words("shape"), "colour": scenes_words("colour"), "pattern": scenes_words("pattern")}
    return all(not (words & values) or getattr(drawn, kind) in words for kind, values in attributes.items())


def scenes_words(kind: str) -> set[str]:
    return {
        "shape": {"circle", "square", "triangle", "star", "ring", "frame", "cross", "crescent", "fork", "arrow"},
        "colour": {"red", "orange", "yellow", "green", "blue", "purple", "white", "black"},
        "pattern": {"plain", "striped", "dotted", "checked"},
    }[kind]


def test_expressions_have_one_answer() -> None:
    for index in range(40):
        scene = scenes.draw_scene("test", index)
        for phrase in scene.phrases:
            if phrase.kind in ("class", "colour", "pattern"):
                fitting = [k for k, o in enumerate(scene.objects) if words_fit(phrase.text, o)]
                assert fitting == [phrase.target], phrase
            if phrase.kind == "no_target":
                assert not any(words_fit(phrase.text, o) for o in scene.objects), phrase
            if phrase.kind == "order" and "most" in phrase.text and phrase.target is not None:
                target = scene.objects[phrase.target]
                same = [o.centre_x for o in scene.objects if o.shape == target.shape]
                expected = min(same) if "leftmost" in phrase.text else max(same)
                assert target.centre_x == expected


def test_hurried_outlines_are_near_but_coarse(embedded: Path) -> None:
    samples = [s for s in load_samples("scenes/test") if not s.no_target]
    drawn = [Mask.from_polygons(s.polygons, s.height, s.width) for s in samples]
    counts = pair_counts(drawn, [s.target for s in samples])
    mean = float((counts["intersection"] / counts["union"]).mean())
    boundary = float((counts["boundary_intersection"] / counts["boundary_union"]).mean())
    assert 0.6 < mean < 0.95
    assert boundary < mean


def test_snapshots(embedded: Path) -> None:
    samples = load_samples("snapshots/test")
    assert len({s.image_id for s in samples}) >= 6
    assert len(samples) >= 30
    assert all(s.no_target == (s.target.area == 0) for s in samples)
    assert sum(s.no_target for s in samples) >= 3
    assert len(load_objects("snapshots")) > len({a for s in samples for a in s.ann_ids})
    for path in {s.image_path for s in samples}:
        assert Image.open(path).mode == "RGB"


def test_snapshots_refuse_other_pixels(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = json.loads((project_data("datasets") / "snapshots" / "annotations.json").read_text())
    content["images"][0]["pixels_sha256"] = "0" * 64
    folder = tmp_path / "data" / "snapshots"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(content))
    monkeypatch.setattr(snapshots, "project_data", lambda name: tmp_path / "data")
    with pytest.raises(DatasetError, match=r"install the package versions listed in constraints\.txt"):
        build_dataset("snapshots", snapshots.build, Sources(), silent)


@pytest.mark.parametrize("builder", [scenes.build, snapshots.build])
def test_embedded_datasets_take_no_files(home: Path, tmp_path: Path, builder: object) -> None:
    with pytest.raises(DatasetError, match="so remove --annotations and --images"):
        build_dataset("scenes", builder, Sources(annotations=tmp_path), silent)  # type: ignore[arg-type]


def test_fingerprint_feels_content_and_ignores_places(embedded: Path) -> None:
    samples = load_samples("snapshots/test")
    # Loading makes image paths absolute: the fingerprint must not notice.
    assert samples_fingerprint(samples) == read_manifest("snapshots").splits["test"].fingerprint
    assert samples_fingerprint(samples[::-1]) != samples_fingerprint(samples)
