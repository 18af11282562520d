"""Detectors with SAM, and SAM 3: loaded as users load them, run on images, and their rules restated in numpy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.networks import save_grounding_dino, save_owlv2, save_sam, save_sam3
from refbench import run, score
from refbench.adapters.box_prompts import KEPT, PerImage
from refbench.adapters.contract import FAILED, check_adapter
from refbench.adapters.grounded_sam import normalised
from refbench.adapters.segment_anything import HALF, IMAGENET, Prompts, SegmentAnything, squeezed
from refbench.errors import AdapterError, RunError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_adapter
from refbench.records import Sample
from refbench.runs.folder import RunFolder

pytestmark = pytest.mark.slow  # networks


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    made = {kind: save_sam(kind, folder / kind) for kind in ("sam", "sam-hq", "sam2")}
    made |= {
        "grounding-dino": save_grounding_dino(folder / "gd"),
        "owlv2": save_owlv2(folder / "owl"),
        "sam3": save_sam3(folder / "sam3"),
    }
    return {name: str(path) for name, path in made.items()}


CHOICES = {
    "grounded-sam": ("grounded-sam", {"detector": "grounding-dino", "sam": "sam"}),
    "grounded-sam-hq": ("grounded-sam", {"detector": "grounding-dino", "sam": "sam-hq", "policy": "union"}),
    "grounded-sam2": ("grounded-sam", {"detector": "grounding-dino", "sam": "sam2", "policy": "top1-if"}),
    "owlv2-sam": ("owlv2-sam", {"detector": "owlv2", "sam": "sam"}),
    "sam3": ("sam3", {"model": "sam3"}),
    "sam3-union": ("sam3", {"model": "sam3", "policy": "union", "threshold": "0.25"}),
    "sam3-semantic": ("sam3", {"model": "sam3", "policy": "semantic"}),
}


def load(models: dict[str, str], choice: str, **more: str) -> Any:
    name, options = CHOICES[choice]
    return load_adapter(name, {k: models.get(v, v) if k != "policy" else v for k, v in options.items()} | more)


@pytest.mark.parametrize("choice", sorted(CHOICES))
def test_on_photographs(models: dict[str, str], photos: Path, tmp_path: Path, choice: str) -> None:
    name, options = CHOICES[choice]
    chosen = {k: models.get(v, v) if k != "policy" else v for k, v in options.items()}
    result = run(name, "refcoco/testB", options=chosen, limit=8, out=tmp_path / "run")
    assert result.failures == 0
    score(result.folder)
    info = json.loads((result.folder / "run.json").read_text())
    assert len(info["weights_sha256"]) >= 64


@pytest.mark.parametrize("choice", ["grounded-sam", "grounded-sam2", "owlv2-sam", "sam3"])
def test_images_prepared_in_processes(models: dict[str, str], photos: Path, tmp_path: Path, choice: str) -> None:
    """As on CUDA; the masks are those of threads."""
    adapter = load(models, choice)
    said: list[str] = []
    runs = []
    for in_processes in (False, True):
        adapter.prepare_in_processes = in_processes
        out = tmp_path / f"{in_processes}"
        runs.append(run(adapter, "refcoco/testB", limit=8, batch_size=4, out=out, log=said.append).folder)
    assert said == []
    assert [s.read_bytes() for s in RunFolder(runs[0]).shards] == [s.read_bytes() for s in RunFolder(runs[1]).shards]


@pytest.mark.parametrize("choice", ["grounded-sam", "owlv2-sam", "sam3"])
def test_the_contract(models: dict[str, str], choice: str) -> None:
    failed = {c.name: c.detail for c in check_adapter(load(models, choice)) if c.verdict == FAILED}
    assert failed == {}


def test_missing_weights_are_an_error(models: dict[str, str], tmp_path: Path) -> None:
    for option, source, part in (
        ("detector", models["grounding-dino"], "model.level_embed"),
        ("sam", models["sam"], "mask_decoder.iou_token.weight"),
    ):
        folder = tmp_path / option
        folder.mkdir()
        for file in Path(source).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = load_file(folder / "model.safetensors")
        del weights[part]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(AdapterError, match=r"lacks 1 weights of .* these weights would be initialised randomly"):
            load(models, "grounded-sam", **{option: str(folder)})
    with pytest.raises(AdapterError, match="is a model of type owlv2; supported types: sam"):
        load(models, "grounded-sam", sam=models["owlv2"])
    with pytest.raises(AdapterError, match="is a model of type sam; supported types: grounding-dino"):
        load(models, "grounded-sam", detector=models["sam"])
    with pytest.raises(AdapterError, match="unknown policy 'best'; choose from top1, union, top1-if, all-classes"):
        load(models, "grounded-sam", policy="best")
    with pytest.raises(AdapterError, match=r"a threshold must be between 0 and 1, got 3.0"):
        load(models, "sam3", threshold="3")


def sample(image: Image.Image, expression: str, dataset: str = "d", category: str = "") -> Sample:
    nothing = Mask.empty(image.height, image.width)
    return Sample(
        f"{dataset}/s/0/0", "0", "", image.height, image.width, expression, expression, "0", "0", (), category, nothing,
        True,
    )  # fmt: skip


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("policy", ["top1", "union", "top1-if"])
@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.95])
def test_policies_of_boxes_restated(models: dict[str, str], policy: str, threshold: float) -> None:
    """Known logits instead of the network's; SAM instead of a box drawer is asked for what the rule says."""
    adapter = load(models, "grounded-sam", policy=policy, threshold=str(threshold))
    image = picture(60, 90)
    logits = np.full((1, 5, 256), -np.inf, np.float32)
    logits[0, :, 1:4] = [[-3, 0, -1], [2, -2, 0.4], [-5, -5, -5], [1.9, 0, 0], [-9, -9, 0.6]]
    boxes = np.array(
        [[[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.7, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.2]]],
        np.float32,
    )
    output = SimpleNamespace(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes))
    adapter.network = lambda **_: output
    answer = adapter.segment([image], ["the red dog"])[0]
    scores = 1 / (1 + np.exp(-logits[0].max(axis=1)))
    keep = {
        "top1": [int(scores.argmax())],
        "union": [k for k in np.argsort(-scores) if scores[k] > threshold],
        "top1-if": [int(scores.argmax())] if scores.max() > threshold else [],
    }[policy]
    expected = np.zeros((60, 90), bool)
    for k in keep:
        x, y, w, h = boxes[0, k]
        corners = [[(x - w / 2) * 90, (y - h / 2) * 60, (x + w / 2) * 90, (y + h / 2) * 60]]
        sam = adapter.sam.network
        expected |= sam.decode(sam.embed(np.asarray(image)), Prompts(torch.tensor(corners))).masks[0].numpy()
    assert np.array_equal(answer.mask.numpy(), expected)
    assert answer.score == pytest.approx(scores.max(), abs=1e-6)
    assert answer.no_target == (None if policy == "top1" else not keep)
    assert len(json.loads(answer.raw)) == len(keep)


@pytest.mark.parametrize("kind", ["sam", "sam-hq", "sam2"])
def test_sam_draws_what_its_own_processor_makes_of_it(models: dict[str, str], kind: str) -> None:
    """transformers' own way with one box; for SAM 2, whose processor needs torchvision, the rule of that."""
    network = SegmentAnything(models[kind])
    image = np.asarray(picture(70, 110, 4))
    box = torch.tensor([[12.0, 8.0, 90.0, 60.0]])
    ours = network.decode(network.embed(image), Prompts(box)).masks[0].numpy()
    with torch.inference_mode():
        if kind == "sam2":
            side = network.side_px
            scaled = box * torch.tensor([side / 110, side / 70, side / 110, side / 70])
            pixels = squeezed(image, side, IMAGENET)
            output = network.network(pixel_values=pixels, input_boxes=scaled[None], multimask_output=False)
            logits = torch.nn.functional.interpolate(output.pred_masks[0].float(), (70, 110), mode="bilinear")
            expected = (logits[0, 0] > 0).numpy()
        else:
            processor = network._processor
            ready = processor(images=image, return_tensors="pt")
            scale = ready["reshaped_input_sizes"][0] / torch.tensor([70, 110])
            scaled = box * torch.tensor([scale[1], scale[0], scale[1], scale[0]])
            output = network.network(
                pixel_values=ready["pixel_values"], input_boxes=scaled[None].float(), multimask_output=False
            )
            expected = processor.post_process_masks(
                output.pred_masks, ready["original_sizes"], ready["reshaped_input_sizes"]
            )[0][0, 0].numpy()
    assert np.array_equal(ours, expected)
    assert 0 < expected.sum() < expected.size


def test_preprocessing_without_torchvision() -> None:
    """A square by bilinear interpolation with antialiasing, as torchvision does it, then (x - mean) / spread."""
    image = np.asarray(picture(40, 60, 1))
    ours = squeezed(image, 30, HALF)[0].numpy()
    small = Image.fromarray(image).resize((30, 30), Image.Resampling.BILINEAR)
    expected = (np.asarray(small).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    # Pillow rounds to whole levels in between, twice.
    assert np.abs(ours - expected).max() <= 2.5 / 255 / 0.5


def test_captions_end_in_one_full_stop(models: dict[str, str]) -> None:
    assert normalised("  The MAN in the st. louis shirt. ") == "the man in the st louis shirt."
    assert normalised("") == "."
    adapter = load(models, "grounded-sam")
    images = [picture(50, 60), picture(50, 60, 1)]
    expressions = ["the man left", "red dog", "a cup"]
    ((together, _),) = adapter.forward([adapter.prepare(images[0], expressions)])
    alone = [adapter.forward([adapter.prepare(images[0], [e])])[0][0][0] for e in expressions]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-4)
        assert torch.allclose(a.boxes, b.boxes, atol=1e-2)
    answer = adapter.segment(images[:1], ["dog " * 2000])[0]
    assert answer.note == "text cut to 256 tokens"


def test_all_classes_in_one_caption_restated(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ["red bed", "cat", "zebra"]
    image = picture(50, 80, 2)
    # In the order of the annotation file, which is that of the samples of an image.
    asked = [sample(image, c, category=c) for c in ("cat", "red bed", "zebra", "cat")]
    monkeypatch.setattr("refbench.adapters.grounded_sam.load_samples", lambda address: asked)
    adapter = load(models, "grounded-sam", policy="all-classes", threshold="0.5")
    answers = adapter.segment_samples([sample(image, c, category=c) for c in classes], [image] * 3)
    # cat . red bed . zebra . -> [CLS] cat . red bed . zebra . [SEP]
    ready = adapter.processor(images=[image], text=["cat . red bed . zebra ."], return_tensors="pt")
    tokens = adapter.processor.tokenizer.convert_ids_to_tokens(ready["input_ids"][0])
    assert tokens == ["[CLS]", "cat", ".", "red", "bed", ".", "zebra", ".", "[SEP]"]
    with torch.inference_mode():
        shares = adapter.network(**ready).logits[0].sigmoid().numpy()
    pairs = {"cat": shares[:, 1], "red bed": shares[:, 3:5].mean(axis=1), "zebra": shares[:, 6]}
    ranked = sorted(((s, name) for name, column in pairs.items() for s in column), reverse=True)[:100]
    for name, answer in zip(classes, answers, strict=True):
        expected = [s for s, other in ranked if other == name]
        assert sorted((s for _, s in answer.instances), reverse=True) == pytest.approx(expected, abs=1e-5)
        assert answer.no_target == (not any(s > 0.5 for s in expected))
    assert sum(len(a.instances) for a in answers) == 100
    with pytest.raises(AdapterError, match="has the category 'star', which does not exist in d/s"):
        adapter.segment_samples([sample(image, "star", category="star")], [image])
    # More classes than a caption holds make several.
    many = [f"{a} {b} {c}" for a in ("red", "blue", "left") for b in ("man", "dog", "cup", "bed") for c in "abcdefgh"]
    captions = adapter._captions(many)
    assert len(captions) > 1
    assert [name for _, spans in captions for name in spans] == many
    for caption, spans in captions:
        found = adapter.processor.tokenizer(caption)["input_ids"]
        assert len(found) <= 256
        for name, place in spans.items():
            assert adapter.processor.tokenizer.decode([found[k] for k in place]) == name


def test_owlv2_boxes_are_of_the_padded_square(models: dict[str, str]) -> None:
    adapter = load(models, "owlv2-sam")
    image = picture(60, 100)
    logits = torch.tensor([[[0.2], [1.5], [-1.0]]])
    boxes = torch.tensor([[[0.5, 0.3, 0.4, 0.2], [0.4, 0.25, 0.2, 0.3], [0.5, 0.5, 1.0, 1.0]]])
    adapter.network = lambda **_: SimpleNamespace(logits=logits, pred_boxes=boxes)
    answer = adapter.segment([image], ["the man"])[0]
    found = json.loads(answer.raw)
    assert found == [
        {"box": pytest.approx([30.0, 10.0, 50.0, 40.0], abs=1e-3), "score": pytest.approx(0.8176, abs=1e-4)}
    ]
    assert adapter.segment([image], ["cat " * 40])[0].note == "text cut to 16 tokens"


def test_owlv2_asks_all_expressions_of_an_image_at_once(models: dict[str, str]) -> None:
    adapter = load(models, "owlv2-sam")
    image = picture(60, 100)
    expressions = ["the man", "red dog on the left", "a blue cup"]
    ((together, _),) = adapter.forward([adapter.prepare(image, expressions)])
    assert len(together) == len(expressions)
    for expression, found in zip(expressions, together, strict=True):
        ((alone, _),) = adapter.forward([adapter.prepare(image, [expression])])
        assert torch.allclose(found.scores, alone[0].scores, atol=1e-5)
        assert torch.allclose(found.boxes, alone[0].boxes, atol=1e-3)
        assert found.scores.min() > 0
    assert not torch.allclose(together[0].scores, together[1].scores)


@pytest.mark.parametrize("choice", ["grounded-sam", "owlv2-sam", "sam3"])
def test_mixed_precision_is_another_run(models: dict[str, str], photos: Path, tmp_path: Path, choice: str) -> None:
    exact, mixed = load(models, choice), load(models, choice, precision="bfloat16")
    folders = [
        run(adapter, "refcoco/testB", limit=4, out=tmp_path / name).folder
        for name, adapter in (("exact", exact), ("mixed", mixed))
    ]
    options = [json.loads((folder / "run.json").read_text())["adapter_options"] for folder in folders]
    assert [o["precision"] for o in options] == ["float32", "bfloat16"]
    with pytest.raises(RunError, match="precision"):
        run(mixed, "refcoco/testB", limit=4, out=tmp_path / "exact")
    with pytest.raises(AdapterError, match="unknown precision 'half'; choose from float32, float16, bfloat16"):
        load(models, choice, precision="half")


def test_adapters_with_tokenizers_can_be_pickled(models: dict[str, str]) -> None:
    adapter = load(models, "sam3")
    copy = pickle.loads(pickle.dumps(adapter))
    image = picture(40, 60)
    assert torch.equal(copy.segment([image], ["the man"])[0].mask, adapter.segment([image], ["the man"])[0].mask)


@pytest.mark.parametrize("policy", ["top1", "union", "semantic"])
def test_sam3_rules_restated(models: dict[str, str], policy: str) -> None:
    adapter = load(models, "sam3", policy=policy, threshold="0.3")
    image = picture(40, 60)
    generator = np.random.default_rng(5)
    logits, presence = generator.normal(size=(1, 4)).astype(np.float32), np.array([[0.7]], np.float32)
    masks = generator.normal(size=(1, 4, 16, 16)).astype(np.float32)
    semantic = generator.normal(size=(1, 1, 16, 16)).astype(np.float32)
    adapter.network = _Fixed(adapter.network, logits, presence, masks, semantic)
    answer = adapter.segment([image], ["the man"])[0]

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    scores = sigmoid(logits[0]) * sigmoid(presence[0])
    keep = {"top1": [int(scores.argmax())], "union": list(np.flatnonzero(scores > 0.3)), "semantic": []}[policy]
    drawn = semantic[0] if policy == "semantic" else masks[0][keep]
    # The original resizes the logits and takes their sigmoid then.
    shares = [sigmoid(_bilinear(m, 40, 60)) for m in drawn]
    expected = np.any([s > 0.5 for s in shares], axis=0)
    # The last bit of a float may decide on a pixel that is at the threshold to six digits.
    sure = np.all([np.abs(s - 0.5) > 1e-6 for s in shares], axis=0)
    assert np.array_equal(answer.mask.numpy()[sure], expected[sure])
    assert answer.score == pytest.approx(scores.max(), abs=1e-6)
    instances = answer.instances
    assert [score for _, score in instances] == pytest.approx(list(scores[keep]) if policy == "union" else [], abs=1e-6)
    if instances:
        assert torch.equal(torch.stack([m for m, _ in instances]).any(dim=0), answer.mask)


class _Fixed:
    """SAM 3 with the outputs that it is given."""

    def __init__(self, network: Any, *outputs: np.ndarray) -> None:
        self.network = network
        self.config = network.config
        self.outputs = [torch.from_numpy(o) for o in outputs]

    def get_vision_features(self, **arguments: Any) -> Any:
        return self.network.get_vision_features(**arguments)

    def __call__(self, **_: Any) -> Any:
        names = ("pred_logits", "presence_logits", "pred_masks", "semantic_seg")
        return SimpleNamespace(**dict(zip(names, self.outputs, strict=True)))


def _bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centers, edges held."""
    rows = np.clip((np.arange(height) + 0.5) * values.shape[0] / height - 0.5, 0, values.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * values.shape[1] / width - 0.5, 0, values.shape[1] - 1)
    y, x = np.floor(rows).astype(int), np.floor(columns).astype(int)
    y1, x1 = np.minimum(y + 1, values.shape[0] - 1), np.minimum(x + 1, values.shape[1] - 1)
    fy, fx = (rows - y)[:, None], (columns - x)[None]
    top = values[y][:, x] * (1 - fx) + values[y][:, x1] * fx
    low = values[y1][:, x] * (1 - fx) + values[y1][:, x1] * fx
    return top * (1 - fy) + low * fy


def test_sam3_shares_the_embedding_and_cuts_the_text(models: dict[str, str]) -> None:
    adapter = load(models, "sam3")
    calls = []
    compute = adapter._embedded._compute
    adapter._embedded._compute = lambda image, pixels: calls.append(image) or compute(image, pixels)
    images = [picture(40, 60), picture(50, 40, 1)]
    expressions = ["the man", "red dog", "cat " * 900, "cup"]
    together = adapter.segment([images[0]] * 3 + [images[1]], expressions)
    assert len(calls) == 2
    assert [a.note for a in together] == ["", "", "text cut to 32 tokens", ""]
    fresh = load(models, "sam3")
    for k, expression in enumerate(expressions):
        alone = fresh.segment([images[k // 3]], [expression])[0]
        assert (alone.mask != together[k].mask).float().mean() < 2e-3


def test_what_is_kept_for_an_image() -> None:
    made: list[int] = []

    def compute(image: Image.Image) -> int:
        made.append(image.width)
        return len(made)

    kept = PerImage(compute)
    images = [Image.new("L", (k + 1, 1)) for k in range(KEPT + 1)]
    assert [kept.of(i) for i in images[:KEPT]] == [kept.of(i) for i in images[:KEPT]]
    assert len(made) == KEPT
    kept.of(images[KEPT])
    kept.of(images[KEPT - 1])
    assert len(made) == KEPT + 1
    kept.of(images[0])
    assert len(made) == KEPT + 2
