"""Refiners on a square whose true edge is known, refiners that misbehave, and SAM and SAM-HQ as users load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation.miniature_split import square
from small_models import DECODER, ENCODER, PROMPTS, save_sam
from transformers import (
    SamConfig,
    SamModel,
)

from refbench.curation.refiners.base import Refined, jittered, propose
from refbench.errors import AdapterError
from refbench.masks.counting import pair_counts
from refbench.masks.mask import Mask
from refbench.plugins.loading import load

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


class Batched(Odd):
    """One whose batch fails, while single masks work."""

    def refine_many(self, image: Any, masks: Any, boxes: Any) -> Any:
        raise RuntimeError("out of memory")


def test_a_batch_that_fails_is_asked_one_by_one() -> None:
    found = propose(Batched(Refined(TRUE.to_array(), 0.5)), picture(), ["a", "b"], [COARSE, COARSE], 2)
    assert [(p.mask_id, p.variant, p.error) for p in found] == [("a", 0, ""), ("a", 1, ""), ("b", 0, ""), ("b", 1, "")]


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
    # All masks of an image at once, or one by one: the same.
    boxes = [s.box_xywh for s in sources]
    together = refiner.refine_many(picture(), [s.to_array() for s in sources], boxes)
    alone = [refiner.refine(picture(), s.to_array(), b) for s, b in zip(sources, boxes, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert (one.mask != other.mask).mean() < 1e-3
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    # The prompts matter: another box, another answer; and so does the coarse mask.
    bare = load("refiners", name)(weights=str(folder), mask_prompt=False)
    for other in (
        bare.refine(picture(), COARSE.to_array(), boxes[0]),
        refiner.refine(picture(), COARSE.to_array(), boxes[1]),
    ):
        assert (other.mask != alone[0].mask).any() or other.confidence != alone[0].confidence


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
