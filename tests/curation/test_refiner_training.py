"""The trained refiner: it learns, the same training gives the same file, and damaged files are refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refbench.curation.agreement import boundary_iou
from refbench.curation.refiner_training import LEAST_AREA_PX, accurate_masks, coarse_outline, train_refiner
from refbench.curation.refiners.base import Target
from refbench.curation.refiners.trained import (
    RefinementNetwork,
    Settings,
    TrainedRefiner,
    crop_input,
    metadata_of,
    read_refiner,
)
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.storage.files import file_sha256
from refbench.storage.images import load_image
from refbench.storage.weights import add_weights

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_coarse_outlines_have_the_faults_of_annotators() -> None:
    y, x = np.mgrid[:200, :240]
    true = Mask.from_array((y - 100) ** 2 + (x - 120) ** 2 < 70**2)
    coarse = [coarse_outline(true, seed) for seed in range(40)]
    assert coarse == [coarse_outline(true, seed) for seed in range(40)]
    found = boundary_iou([c for c in coarse if c], [true] * 40)
    assert len(found) == 40
    assert 0.3 < found.min() < 0.75 < found.max() <= 1


def test_an_untrained_network_returns_the_coarse_mask() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    crop = torch.from_numpy(crop_input(image, mask, (slice(0, 64), slice(0, 64)), 64))[None]
    with torch.inference_mode():
        logits = RefinementNetwork()(crop)[0].numpy()
    assert np.array_equal(logits > 0, mask)


@pytest.fixture
def trained(embedded: Path, tmp_path: Path) -> Path:
    out = tmp_path / "refiner.safetensors"
    train_refiner(["scenes/val"], out, steps=2, side=64)
    return out


def test_the_same_training_gives_the_same_file(trained: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    train_refiner(["scenes/val"], again, steps=2, side=64)
    train_refiner(["scenes/val"], other, steps=2, side=64, seed=1)
    assert again.read_bytes() == trained.read_bytes()
    assert other.read_bytes() != trained.read_bytes()
    settings, _ = read_refiner(trained)
    assert (settings.side, settings.steps) == (64, 2)
    assert set(settings.trained_on) == {"scenes/val"}


def test_a_training_can_start_from_an_earlier_one(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "next.safetensors"
    train_refiner(["scenes/val"], out, steps=1, side=32, start=trained)
    settings, _ = read_refiner(out)
    assert settings.side == 64
    assert settings.start_sha256 == file_sha256(trained)


def test_held_out_images_are_not_trained_on(embedded: Path, tmp_path: Path) -> None:
    masks = accurate_masks("scenes/val")
    assert min(m.mask.area for m in masks) >= LEAST_AREA_PX
    name = Path(masks[0].image_path).name
    done = train_refiner(["scenes/val"], tmp_path / "r.safetensors", hold_out=[name], steps=1, side=32)
    own = sum(Path(m.image_path).name == name for m in masks)
    assert (done.held_out, done.masks) == (own, len(masks) - own)
    with pytest.raises(DatasetError, match="no image has 'zebra' in its file name"):
        train_refiner(["scenes/val"], tmp_path / "r.safetensors", hold_out=["zebra"], steps=1, side=32)


def test_variants_are_crops_of_different_widths(trained: Path) -> None:
    refiner = TrainedRefiner(str(trained))
    accurate = accurate_masks("scenes/val")[0]
    image = np.asarray(load_image(accurate.image_path, *accurate.mask.size))
    target = Target(accurate.mask.to_array(), accurate.mask.box_xywh)
    first = refiner.refine_target(image, target, 3)
    assert len(first) == 3
    assert all(0 <= a.confidence <= 1 and a.mask.shape == target.mask.shape for a in first)
    again = refiner.refine_target(image, target, 3)
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(first, again, strict=True))
    assert np.array_equal(refiner.refine(image, target.mask, target.box).mask, first[0].mask)


def test_weights_are_found_by_name(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFBENCH_HOME", str(tmp_path / "home"))
    added = add_weights("mine", trained)
    assert TrainedRefiner("mine").weights_sha256 == added.sha256


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: {**s, "side": 65}, "its side is 65"),
        (lambda s: {**s, "width": 24}, "size mismatch"),
        (lambda s: {**s, "width": 8000}, "its width is 8000"),
        (lambda s: {**s, "colour": 1}, "unknown field"),
        (lambda s: {"side": 64}, "missing required field"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], dict[str, object]], expected: str
) -> None:
    content = change(json.loads(metadata_of(Settings(64, 16))["refbench_refiner"]))
    path = tmp_path / "r.safetensors"
    safetensors.save_file(RefinementNetwork(16).state_dict(), path, {"refbench_refiner": json.dumps(content)})
    with pytest.raises(DatasetError, match=expected):
        read_refiner(path)


def test_other_files_are_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(DatasetError, match="was not written by `refbench curate train-refiner`"):
        read_refiner(other)
    content = trained.read_bytes()
    for broken in (b"", b"not weights", content[: len(content) // 2], content[:200] + b"\xff" * 50 + content[250:]):
        other.write_bytes(broken)
        with pytest.raises(DatasetError, match=r"other\.safetensors"):
            read_refiner(other)


def test_the_command_states_what_was_reached(embedded: Path, tmp_path: Path, refbench: Cli) -> None:
    out = tmp_path / "refiner.safetensors"
    options = ("--on", "scenes/val", "--steps", "1", "--side", "32", "--out", str(out))
    result = refbench("curate", "train-refiner", *options, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["held_out"] > 0
    assert 0 < found["before"] < 1
    assert out.is_file()
    wrong = refbench("curate", "train-refiner", *options[:-4], "--side", "40", "--out", str(out))
    assert wrong.returncode != 0
    assert "the side must be a multiple of 16" in wrong.stderr


@pytest.mark.slow
def test_a_trained_refiner_improves_outlines_it_has_not_seen(embedded: Path, tmp_path: Path) -> None:
    done = train_refiner(["scenes/val"], tmp_path / "refiner.safetensors", steps=150, side=96)
    assert done.after > done.before + 0.02
    assert done.better > 0.6
