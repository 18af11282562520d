"""Refiners on a square whose true edge is known, refiners that misbehave, and SAM and SAM-HQ as users load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curation.bright_objects import build_bright
from curation.miniature_split import square
from numpy.typing import NDArray
from skimage.measure import label
from transformers import (
    SamConfig,
    SamModel,
)

from benchmarks.networks import DECODER, ENCODER, PROMPTS, save_sam, save_sam3
from refbench.curation import proposals as proposals_module
from refbench.curation.findings import audit
from refbench.curation.proposals import make_refiner, read_proposals
from refbench.curation.proposals import propose as propose_split
from refbench.curation.recipe import RefinerChoice, parse_recipe
from refbench.curation.refiners.base import Refined, Target, jittered, propose
from refbench.curation.refiners.sam import without_specks
from refbench.errors import AdapterError, DatasetError
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.plugins.options import bind_options
from refbench.records import Answer

HEIGHT, WIDTH = 100, 120
TRUE = square(30, 35, 40, HEIGHT, WIDTH)
COARSE = square(28, 32, 45, HEIGHT, WIDTH)


def picture() -> np.ndarray:
    """A red square on grey, with noise."""
    random = np.random.default_rng(1)
    pixels = np.full((HEIGHT, WIDTH, 3), 140.0) + random.normal(0, 3, (HEIGHT, WIDTH, 1))
    pixels[TRUE.to_array()] = np.array([190, 40, 40]) + random.normal(0, 3, (TRUE.area, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["grabcut", "random-walker", "active-contour", "watershed", "superpixels"])
def test_classical_refiners_find_the_edge(name: str) -> None:
    found = propose(load("refiners", name)(), picture(), ["a"], [COARSE], 3)
    assert [(p.mask_id, p.refiner, p.variant, p.error) for p in found] == [("a", name, v, "") for v in range(3)]
    counts = pair_counts([found[0].mask, COARSE], [TRUE, TRUE])
    boundary_iou = counts["boundary_intersection"] / counts["boundary_union"]
    assert boundary_iou[0] > max(0.75, boundary_iou[1])
    assert 0 <= found[0].confidence <= 1
    assert found[0].misfit_px < found[0].source_misfit_px
    # The same again, to the bit.
    assert propose(load("refiners", name)(), picture(), ["a"], [COARSE], 3) == found


@pytest.mark.parametrize(
    "mask", [square(0, 0, 100, 100, 100), square(0, 0, 3, HEIGHT, WIDTH), square(99, 119, 1, HEIGHT, WIDTH)]
)
@pytest.mark.parametrize("name", ["grabcut", "random-walker", "active-contour", "watershed", "superpixels"])
def test_classical_refiners_survive_odd_masks(name: str, mask: Mask) -> None:
    pixels = np.zeros((*mask.size, 3), np.uint8)
    for proposal in propose(load("refiners", name)(), pixels, ["a"], [mask], 4):
        # Told as failed, or a mask of the image's size; nothing is raised.
        assert proposal.mask.size == mask.size
        assert bool(proposal.error) == (proposal.mask.area == 0)


def test_starts_are_shifted_a_little() -> None:
    source = COARSE.to_array()
    starts = [jittered(source, v) for v in range(7)]
    assert starts[0] is source
    assert starts[1].sum() > source.sum() > starts[2].sum() > 0
    assert len({s.tobytes() for s in starts}) == 7


class Odd:
    """A refiner that gives what it was told to."""

    name = "odd"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def refine(self, image: Any, mask: Any, box: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ValueError("no luck"), "ValueError: no luck"),
        (Refined(np.zeros((HEIGHT, WIDTH), bool), 0.5), "the empty mask"),
        (Refined(np.ones((HEIGHT, WIDTH), bool), 0.5), "the whole image"),
        (Refined(np.ones((HEIGHT, WIDTH + 1), bool), 0.5), "its mask is 100 x 121, the image 100 x 120"),
        (Refined(np.ones((HEIGHT, WIDTH)), 0.5), "no mask and confidence"),
        (Refined(TRUE.to_array(), float("nan")), "confidence nan is not in 0..1"),
        (Refined(TRUE.to_array(), "sure"), "no mask and confidence"),
        (None, "no mask and confidence"),
        (TRUE.to_array(), "no mask and confidence"),
    ],
)  # fmt: skip
def test_what_a_refiner_may_do_wrong(answer: Any, told: str) -> None:
    (found,) = propose(Odd(answer), picture(), ["a"], [COARSE], 1)
    assert told in found.error
    assert found.mask == Mask.empty(HEIGHT, WIDTH)
    (empty,) = propose(Odd(answer), picture(), ["a"], [Mask.empty(HEIGHT, WIDTH)], 2)
    assert "no source mask" in empty.error


class Fussy(Odd):
    """One that fails for the first mask only."""

    def refine(self, image: Any, mask: Any, box: Any) -> Any:
        if mask.sum() == COARSE.area:
            raise RuntimeError("out of memory")
        return super().refine(image, mask, box)


def test_a_mask_that_fails_takes_no_other_along() -> None:
    other = square(5, 5, 20, HEIGHT, WIDTH)
    found = propose(Fussy(Refined(TRUE.to_array(), 0.5)), picture(), ["a", "b"], [COARSE, other], 1)
    assert [(p.mask_id, p.error) for p in found] == [("a", "RuntimeError: out of memory"), ("b", "")]


@pytest.fixture(scope="module", params=["sam", "sam-hq", "sam2", "sam3"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_sam(request.param, tmp_path_factory.mktemp(request.param))


def test_sam_and_its_kin_load_as_users_load_them(saved: tuple[str, Path]) -> None:
    name, folder = saved
    refiner = load("refiners", name)(weights=str(folder))
    assert len(refiner.weights_sha256) == 64
    sources = [COARSE, square(5, 5, 20, HEIGHT, WIDTH)]
    found = propose(refiner, picture(), ["a", "b"], sources, 2)
    assert [(p.mask_id, p.variant) for p in found] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    # Random weights draw no squares; what they draw is a mask of the image's size, or told as what it is.
    assert all(p.error in ("", "it returned the empty mask", "it returned the whole image") for p in found)
    assert all(p.mask.size == (HEIGHT, WIDTH) for p in found)
    # An answer depends on its mask alone: not on its neighbours, on their order, or on the refiner's past.
    backwards = propose(refiner, picture(), ["b", "a"], sources[::-1], 2)
    again = propose(load("refiners", name)(weights=str(folder)), picture(), ["a"], sources[:1], 2)
    assert backwards[2:] == again == found[:2]
    assert backwards[:2] == found[2:]


def test_sam3_by_words_takes_the_instance_that_fits_the_mask(tmp_path: Path) -> None:
    refiner = load("refiners", "sam3-text")(weights=str(save_sam3(tmp_path / "sam3")), threshold=0.0)
    assert len(refiner.weights_sha256) == 64
    asked = []

    def segment(images: list[Any], expressions: list[str]) -> list[Answer]:
        asked.append(list(expressions))
        assert len({id(image) for image in images}) == 1
        far, near = square(0, 0, 5, HEIGHT, WIDTH).to_array(), COARSE.to_array()
        answers = [Answer(near, instances=[(far, 0.9), (near, 0.4)]), Answer(far, instances=[(far, 0.9)])]
        return answers[: len(images)]

    refiner.network.segment = segment
    found = propose(refiner, picture(), ["a"], [COARSE], 2, ["cup"], [["the cup", "cup"]])
    assert asked == [["cup", "the cup"]]
    assert (found[0].mask, found[0].confidence, found[0].error) == (COARSE, 0.4, "")
    assert found[1].error == "it returned the empty mask"
    without = propose(refiner, picture(), ["a"], [COARSE], 2)
    assert all("has neither a class nor an expression" in p.error for p in without)


def test_sam3_by_words_runs_the_network(tmp_path: Path) -> None:
    folder = save_sam3(tmp_path / "sam3")
    refiner = load("refiners", "sam3-text")(weights=str(folder), threshold=0.0)
    sources = [COARSE, square(5, 5, 20, HEIGHT, WIDTH)]
    words = {"categories": ["cup", "dog"], "expressions": [["the cup"], ["a dog"]]}
    found = propose(refiner, picture(), ["a", "b"], sources, 2, **words)
    assert all(p.error in ("", "it returned the empty mask", "it returned the whole image") for p in found)
    again = load("refiners", "sam3-text")(weights=str(folder), threshold=0.0)
    alone = propose(again, picture(), ["b"], sources[1:], 2, ["dog"], [["a dog"]])
    assert alone == found[2:]


@pytest.mark.slow
def test_sam_and_its_kin_propose_the_same_bytes_on_one_and_two_workers(
    saved: tuple[str, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, weights = saved
    monkeypatch.setattr(proposals_module, "SHARD_MASKS", 2)
    build_bright(tmp_path / "a", "refcoco", 5)
    recipe = parse_recipe(
        f'[[refiners]]\nname = "{name}"\nvariants = 2\noptions = {{ weights = "{weights}", trials = 2 }}\n', "r"
    )
    parts = {}
    for workers in (1, 2):
        folder = tmp_path / f"workers-{workers}"
        audit("refcoco/val", recipe, out=folder, with_images=False, workers=1)
        propose_split(folder, workers=workers)
        parts[workers] = {p.name: p.read_bytes() for p in sorted((folder / "proposals" / name).glob("*.parquet"))}
    assert parts[1] == parts[2]
    assert len(parts[1]) == 3
    assert any(not p.error for found in read_proposals(tmp_path / "workers-2").values() for p in found)


class Recorded:
    """A network that notes what it was asked and what it drew."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.calls: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, **prompts: Any) -> Any:
        output = self.network(**prompts)
        self.calls.append((prompts, output.pred_masks, output.iou_scores))
        return output


def drawn_by(logits: torch.Tensor, name: str, side: int) -> NDArray[np.bool_]:
    """Small logits (N, 1, 1, s, s) as masks: resized to the square, cut to the part without padding, to the image."""
    values = logits[:, 0]
    if name in ("sam", "sam-hq"):
        inner = round(HEIGHT * side / max(HEIGHT, WIDTH)), round(WIDTH * side / max(HEIGHT, WIDTH))
        values = torch.nn.functional.interpolate(values, (side, side), mode="bilinear")[..., : inner[0], : inner[1]]
    values = torch.nn.functional.interpolate(values, (HEIGHT, WIDTH), mode="bilinear")
    return (values[:, 0] > 0).numpy()


def test_sam_rounds_restated(saved: tuple[str, Path]) -> None:
    """Boxes, points, logits and the vote, from what the network was asked and what it drew."""
    name, folder = saved
    refiner = load("refiners", name)(weights=str(folder), trials=5)
    recorded = refiner.network.network = Recorded(refiner.network.network)
    source, image = COARSE.to_array(), picture()
    left, top, width, height = COARSE.box_xywh
    (answer,) = refiner.refine_target(image, Target(source, COARSE.box_xywh), 1)
    first, second, third = recorded.calls
    x, y = refiner.network.embed(image).placement.scale
    boxes = first[0]["input_boxes"][:, 0].numpy() / [x, y, x, y]
    assert boxes.shape == (5, 4)
    # Each side moves outwards, by another length in each trial.
    outwards = (boxes - [left, top, left + width, top + height]) * [-1, -1, 1, 1]
    assert (outwards > -1e-3).all()
    assert (outwards <= 5 * min(10, 0.1 * max(width, height)) + 1e-3).all()
    assert len({tuple(b) for b in boxes.round(3).tolist()}) == 5
    assert first[0]["input_points"] is None
    assert first[0]["input_masks"] is None
    for k, (before, now) in enumerate([(first, second), (second, third)]):
        assert torch.equal(now[0]["input_boxes"], first[0]["input_boxes"])
        assert torch.equal(now[0]["input_masks"], before[1][:, 0])
        points = now[0]["input_points"][:, 0].numpy() / [x, y]
        labels = now[0]["input_labels"][:, 0].numpy()
        assert points.shape == (5, k + 1, 2)
        drawn = drawn_by(before[1], name, refiner.network.side_px)
        for mask, (column, row), inside in zip(drawn, points[:, k].round().astype(int), labels[:, k], strict=True):
            assert inside == source[row, column]
            assert mask[row, column] != source[row, column]
        if k:
            assert np.allclose(points[:, 0], second[0]["input_points"][:, 0, 0].numpy() / [x, y])
    votes = drawn_by(third[1], name, refiner.network.side_px).sum(axis=0)
    assert (answer.mask == cleaned(votes >= 3)).all()
    assert answer.confidence == pytest.approx(float(third[2].clamp(0, 1).mean()), abs=1e-6)
    # Some classes get a box only.
    recorded.calls.clear()
    refiner.refine_target(image, Target(source, COARSE.box_xywh, "bicycle"), 1)
    assert len(recorded.calls) == 1


def cleaned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Holes, then islands, of fewer than 100 pixels (8 neighbours) go, if the mask has more than 1,000."""
    if mask.sum() <= 1000:
        return mask
    for wanted in (False, True):
        labels, count = label(mask == wanted, connectivity=2, return_num=True)
        for k in range(1, count + 1):
            if (labels == k).sum() < 100:
                mask = mask ^ (labels == k)
    return mask


def test_specks() -> None:
    random = np.random.default_rng(2)
    for density in (0.02, 0.3, 0.6, 0.98):
        mask = random.random((70, 90)) < density
        mask[10:50, 20:70] |= random.random((40, 50)) < 0.97
        assert (without_specks(mask) == cleaned(mask.copy())).all()
    # All islands are small: the largest one stays.
    islands = np.zeros((120, 120), bool)
    for k in range(20):
        top, left = divmod(k, 5)
        islands[20 * top : 20 * top + 8, 20 * left : 20 * left + 8] = True
    islands[100:109, 100:109] = True
    kept = without_specks(islands)
    assert kept.sum() == 81
    assert kept[100:109, 100:109].all()
    small = np.zeros((40, 40), bool)
    small[5:30, 5:30] = True
    small[0, 0] = True
    assert (without_specks(small) == small).all()


def test_options_of_sam_that_make_no_sense(saved: tuple[str, Path]) -> None:
    name, folder = saved
    with pytest.raises(DatasetError, match="trials must be at least 1"):
        make_refiner(RefinerChoice(name, options={"weights": str(folder), "trials": 0}), "cpu")
    bound = bind_options(name, load("refiners", name), {"weights": str(folder), "box_only": "dining table, bed"}, {})
    assert load("refiners", name)(**bound).box_only == ("dining table", "bed")
    assert load("refiners", name)(weights=str(folder), box_only="bed").box_only == ("bed",)


def test_weights_that_are_missing_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be loaded as SamModel"):
        load("refiners", "sam")(weights=str(tmp_path))
    config = SamConfig(vision_config=ENCODER, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    network = SamModel(config)
    weights = network.state_dict()
    weights.pop(next(k for k in weights if "mask_decoder.iou_token" in k))
    network.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(AdapterError, match="lacks 1 weights of SamModel"):
        load("refiners", "sam")(weights=str(tmp_path))
