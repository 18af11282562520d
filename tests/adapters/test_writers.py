"""Models that write their answer: what is read from it, and Florence-2 and Qwen-VL run end to end."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.networks import save_florence2, save_paligemma, save_qwen_vl, save_sam, save_token_decoder
from refbench import run, score
from refbench.adapters import florence2, gemini, paligemma, qwen_vl_sam
from refbench.adapters.contract import FAILED, check_adapter
from refbench.adapters.paligemma_tokens import TokenDecoder
from refbench.adapters.segment_anything import Prompts
from refbench.errors import AdapterError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_adapter
from refbench.runs.folder import RunFolder


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("writers")
    made = {
        "florence2": save_florence2(folder / "florence2"),
        "qwen": save_qwen_vl(folder / "qwen"),
        "sam": save_sam("sam", folder / "sam"),
        "paligemma": save_paligemma(folder / "paligemma"),
        "decoder": save_token_decoder(folder / "vae-oid.npz"),
    }
    return {name: str(path) for name, path in made.items()}


@pytest.mark.slow
def test_florence2_on_photographs(writers: dict[str, str], photos: Path, tmp_path: Path) -> None:
    options = {"model": writers["florence2"], "max_new_tokens": "12"}
    result = run("florence2", "refcoco/testB", options=options, limit=5, out=tmp_path / "run")
    assert result.failures == 0
    assert sum(result.notes.values()) <= 5
    assert json.loads((result.folder / "run.json").read_text())["mode"] == "generate"
    score(result.folder)
    adapter = load_adapter("florence2", options)
    failed = {c.name: c.detail for c in check_adapter(adapter) if c.verdict == FAILED}
    assert failed == {}
    long = adapter.segment([Image.new("RGB", (50, 40))], ["cat " * 2000])[0]
    assert long.note.startswith("text cut to ")


@pytest.mark.parametrize(
    "text",
    [
        "</s><s><poly><loc_100><loc_200><loc_700><loc_200><loc_400><loc_900></poly></s>",
        "<loc_10><loc_10><loc_500><loc_10><loc_500><loc_500><sep><loc_600><loc_600><loc_9><loc_6><loc_900><loc_950></s>",
        "<s><loc_0><loc_0><loc_999><loc_0><loc_999><loc_999><loc_0><loc_999><loc_7></s><pad>",
        "</s><s><poly><loc_1><loc_1><loc_9><loc_9></poly><poly><loc_1><loc_1><loc_1><loc_500><loc_500><loc_500></poly>",
        "</s><s>nothing to see</s>",
        "<s><loc_5><loc_5><loc_6></s>",
    ],
)
def test_florence2_polygons_against_its_own_processor(writers: dict[str, str], text: str) -> None:
    adapter = load_adapter("florence2", {"model": writers["florence2"]})
    found = adapter.processor.post_process_generation(text, task=florence2.TASK, image_size=(80, 60))[florence2.TASK]
    # transformers cuts coordinates to whole pixels; the original code, and we, take the middle of a bin.
    ours = florence2.polygons_in(text, 60, 80)
    assert [[int(v) for v in p] for p in ours] == [p for i in found["polygons"] for p in i if len(p) >= 6]
    assert florence2.mask_of(text, 60, 80).area == (Mask.from_polygons(ours, 60, 80).area if ours else 0)


class Says:
    """A network of Qwen-VL whose answer is known; everything around it is real."""

    def __init__(self, adapter: Any, answer: str) -> None:
        self.adapter = adapter
        self.answer = answer
        self.asked: list[str] = []
        self.network = adapter.network
        self.positions: list[torch.Tensor] = []

    def generate(self, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        self.positions.append(
            self.network.model.get_rope_index(
                input_ids, mm_token_type_ids=given["mm_token_type_ids"], image_grid_thw=given["image_grid_thw"]
            )[0]
        )
        self.asked.append(self.adapter.tokenizer.decode(input_ids[0]))
        ids = self.adapter.tokenizer(self.answer, return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, ids], dim=1)


@pytest.mark.slow
def test_qwen_vl_from_prompt_to_mask(writers: dict[str, str], photos: Path, tmp_path: Path) -> None:
    adapter = load_adapter("qwen-vl-sam", {"model": writers["qwen"], "sam": writers["sam"]})
    # The real network runs too; random weights write no JSON, which is an error and no empty mask.
    with pytest.raises(AdapterError, match="the answer contains no boxes"):
        adapter.segment([Image.new("RGB", (60, 50))], ["the man"])
    said = Says(adapter, '```json\n[{"bbox_2d": [10, 20, 70, 60], "label": "man"}]\n```')
    adapter.network = said
    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (90, 130, 3), dtype=np.uint8))
    answer = adapter.segment([image], ["the man"])[0]
    grid = adapter.pictures(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    seen_height, seen_width = grid[1] * 14, grid[2] * 14
    scale = [130 / seen_width, 90 / seen_height] * 2
    corners = torch.tensor([[v * s for v, s in zip((10, 20, 70, 60), scale, strict=True)]])
    sam = adapter.sam.network
    expected = sam.decode(sam.embed(np.asarray(image)), Prompts(corners)).masks[0]
    assert torch.equal(answer.mask, expected)
    assert answer.no_target is False
    # The image's places differ along its rows and columns, which text alone would not.
    positions = said.positions[0]
    assert (positions[1] != positions[2]).any()
    assert (positions[0] != positions[1]).any()
    places = said.asked[0].count(qwen_vl_sam.IMAGE_TOKEN)
    assert places == grid[1] * grid[2] // 4
    assert 'Locate "the man", output its bbox coordinates in JSON format.' in said.asked[0]
    shards = []
    for adapter.prepare_in_processes in (False, True):
        remarks: list[str] = []
        out = tmp_path / f"{adapter.prepare_in_processes}"
        result = run(adapter, "refcoco/testB", limit=4, out=out, log=remarks.append)
        assert (result.failures, remarks) == (0, [])
        shards.append([path.read_bytes() for path in RunFolder(result.folder).shards])
    assert shards[0] == shards[1]
    assert {c.name: c.detail for c in check_adapter(adapter) if c.verdict == FAILED} == {}
    assert adapter.segment([image], ["cat " * 2000])[0].note == "text cut to 300 words"


def test_coordinates_are_those_of_the_family(writers: dict[str, str]) -> None:
    adapter = load_adapter("qwen-vl-sam", {"model": writers["qwen"], "sam": writers["sam"]})
    asked: list[torch.Tensor] = []
    adapter.sam = SimpleNamespace(
        masks=lambda image, corners, known: asked.append(corners) or torch.zeros(1, 50, 100).bool()
    )
    said = '[{"bbox_2d": [500, 100, 250, 900]}]'
    for family, seen, expected in (
        ("qwen3_vl", (28, 56), [25.0, 5.0, 50.0, 45.0]),
        ("qwen2_5_vl", (1000, 2000), [12.5, 5.0, 25.0, 45.0]),
    ):
        adapter.family = family
        adapter.answer(said, Image.new("RGB", (100, 50)), seen)
        assert asked[-1].tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("said", "boxes"),
    [
        ('[{"bbox_2d": [1, 2, 3.5, 4], "label": "a"}]', [[1, 2, 3.5, 4]]),
        ('Sure:\n```json\n[{"bbox_2d":[1,2,3,4]},\n{"bbox_2d":[5,6,7,8]}]\n``` done', [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6', [[1, 2, 3, 4]]),
        ("```json\n[]\n```", []),
        ("[]", []),
        ("There are none: []", []),
        ("<ref>the man</ref>(10,20),(300,40)", [[10, 20, 300, 40]]),
        ("There is no man.", None),
        ("", None),
        ('{"bbox": [1, 2, 3, 4]}', None),
    ],
)
def test_boxes_in_an_answer(said: str, boxes: list[list[float]] | None) -> None:
    assert qwen_vl_sam.boxes_in(said) == boxes


def png(levels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def said(entries: Any, **more: Any) -> dict[str, Any]:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    return {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP", **more}]}


def test_gemini_png_in_its_box() -> None:
    levels = np.zeros((20, 30), np.uint8)
    levels[:, 15:] = 255
    answer = gemini.to_answer(said([{"box_2d": [100, 200, 500, 800], "mask": png(levels), "label": "x"}]), 100, 50)
    pixels = answer.mask.to_array()
    assert answer.note == "mask as PNG"
    # Rows 10..50 and columns 10..40; the right half of the box.
    assert pixels.sum() == 40 * 15
    assert pixels[10:50, 25:40].all()


def test_gemini_polygons_and_several_entries() -> None:
    triangle = [[100, 100], [900, 100], [500, 900]]
    entries = [
        {"box_2d": [0, 0, 1000, 1000], "mask": triangle},
        {"box_2d": [900, 0, 1000, 100], "mask": png(np.full((4, 4), 255, np.uint8))},
    ]
    answer = gemini.to_answer(said(f"```json\n{json.dumps(entries)}\n```"), 200, 100)
    canvas = Image.new("1", (100, 200))
    ImageDraw.Draw(canvas).polygon([(10, 20), (90, 20), (50, 180)], fill=1)
    expected = np.asarray(canvas).copy()
    expected[180:200, 0:10] = True
    found = answer.mask.to_array()
    assert (found & expected).sum() / (found | expected).sum() > 0.97
    assert answer.note == "mask as PNG and polygon"


def test_gemini_tokens_need_their_decoder() -> None:
    tokens = "<start_of_mask>" + "".join(f"<seg_{k}>" for k in range(16)) + "<end_of_mask>"
    entry = {"box_2d": [0, 0, 500, 500], "mask": tokens}
    with pytest.raises(AdapterError, match=r"pass the file of the token decoder with -o decoder=vae-oid\.npz"):
        gemini.to_answer(said([entry]), 40, 40)
    seen: list[list[int]] = []
    answer = gemini.to_answer(said([entry]), 40, 40, lambda k: seen.append(k) or np.ones((64, 64)))
    assert seen == [list(range(16))]
    assert answer.note == "mask as tokens"
    assert answer.mask.area == 400
    short = {"box_2d": [0, 0, 500, 500], "mask": "<seg_1><seg_2>"}
    with pytest.raises(AdapterError, match="the mask has 2 tokens instead of 16"):
        gemini.to_answer(said([short]), 40, 40, lambda k: np.ones((64, 64)))


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ({}, "the response contains no answer"),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, "SAFETY"),
        (said("I cannot do this."), "the answer is not valid JSON, perhaps because it was cut off"),
        (said('[{"box_2d": [1, 2'), "the answer is not valid JSON, perhaps because it was cut off"),
        (said([{"box_2d": [1, 2, 3, 4]}]), "has no mask"),
        (said([{"mask": png(np.zeros((2, 2), np.uint8))}]), "an entry of the answer has no box_2d with four numbers"),
        (said([{"box_2d": [0, 0, 9, 9], "mask": "a cat"}]), "has an unknown form"),
        (said([{"box_2d": [0, 0, 9, 9], "mask": [[1, 2], [3, 4]]}]), "cannot be drawn"),
        (said(3), "not a list of objects"),
        (said([], finishReason="MAX_TOKENS"), "the answer was cut off because it reached the token limit"),
    ],
)
def test_gemini_answers_in_no_known_form_are_errors(response: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        gemini.to_answer(response, 30, 30)


def test_gemini_says_that_nothing_is_meant() -> None:
    answer = gemini.to_answer(said([]), 30, 30)
    assert (answer.mask.area, answer.no_target, answer.note) == (0, True, "")


def decoded_by_hand(path: str, tokens: list[int]) -> np.ndarray:
    """The decoder in plain numpy: convolutions as sums over shifted images, transposed ones as scattered kernels."""
    arrays = dict(np.load(path))

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        weight, bias = arrays[f"decoder.{name}.weight"], arrays[f"decoder.{name}.bias"]
        reach = weight.shape[2] // 2
        wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
        out = np.zeros((weight.shape[0], *x.shape[1:]))
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                part = wide[:, i : i + x.shape[1], j : j + x.shape[2]]
                out += np.einsum("oc,chw->ohw", weight[:, :, i, j], part)
        return out + bias[:, None, None]

    def twice_as_large(x: np.ndarray, name: str) -> np.ndarray:
        weight, bias = arrays[f"decoder.{name}.weight"], arrays[f"decoder.{name}.bias"]
        height, width = x.shape[1:]
        wide = np.zeros((weight.shape[1], 2 * height + 2, 2 * width + 2))
        for i in range(4):
            for j in range(4):
                wide[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += np.einsum(
                    "co,chw->ohw", weight[:, :, i, j], x
                )
        return wide[:, 1:-1, 1:-1] + bias[:, None, None]

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    x = arrays["_vq_vae._embedding"][tokens].reshape(4, 4, -1).transpose(2, 0, 1)
    x = relu(conv(x, "0"))
    for block in ("2", "3"):
        x = x + conv(relu(conv(relu(conv(x, f"{block}.net.0")), f"{block}.net.2")), f"{block}.net.4")
    for name in ("4", "6", "8", "10"):
        x = relu(twice_as_large(x, name))
    return np.clip(conv(x, "12")[0] * 0.5 + 0.5, 0, 1)


def test_the_decoder_of_tokens_by_hand(writers: dict[str, str], tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, 128, 16).tolist()
    found = TokenDecoder(Path(writers["decoder"]))(tokens)
    expected = decoded_by_hand(writers["decoder"], tokens)
    assert found.shape == (64, 64)
    assert np.abs(found - expected).max() < 1e-4
    assert 0.01 < (expected > 0.5).mean() < 0.99
    for wrong in ([1] * 15, [128] * 16):
        with pytest.raises(AdapterError, match="a mask must have 16 codes between 0 and 127, got"):
            TokenDecoder(Path(writers["decoder"]))(wrong)
    arrays = dict(np.load(writers["decoder"]))
    arrays.pop("decoder.6.bias")
    np.savez(tmp_path / "short.npz", **arrays)
    (tmp_path / "none.npz").write_bytes(b"PK")
    np.savez(tmp_path / "pickled.npz", **{"_vq_vae._embedding": np.array([{}], dtype=object)})
    for name, message in (
        ("short", "do not fit the decoder"),
        ("none", r"cannot be read as vae-oid\.npz"),
        ("pickled", r"cannot be read as vae-oid\.npz"),
    ):
        with pytest.raises(AdapterError, match=message):
            TokenDecoder(tmp_path / f"{name}.npz")


@pytest.mark.slow
def test_paligemma_on_photographs(
    writers: dict[str, str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights never end an answer.
    monkeypatch.setattr(paligemma, "MOST_TOKENS", 24)
    options = {"model": writers["paligemma"], "decoder": writers["decoder"]}
    result = run("paligemma", "refcoco/testB", options=options, limit=4, out=tmp_path / "run")
    assert result.failures == 0
    # Random weights write no masks; the answers are kept, and counted as what they are.
    assert sum(result.notes.values()) == 4
    assert all(note.startswith("no mask in the answer") for note in result.notes)
    adapter = load_adapter("paligemma", options)
    assert {c.name: c.detail for c in check_adapter(adapter) if c.verdict == FAILED} == {}


def test_paligemma_answers_restated(writers: dict[str, str]) -> None:
    decode = TokenDecoder(Path(writers["decoder"]))
    tokens = list(range(5, 21))
    codes = "".join(f"<seg{k:03d}>" for k in tokens)
    said = f"<loc0256><loc0128><loc0768><loc0896>{codes} the man<eos>"
    answer = paligemma.to_answer(said, 100, 200, decode)
    # Rows 25..75, columns 25..175.
    small = Image.fromarray(decode(tokens).astype(np.float32)).resize((150, 50), Image.Resampling.BILINEAR)
    expected = np.zeros((100, 200), bool)
    expected[25:75, 25:175] = np.asarray(small) > 0.5
    assert np.array_equal(answer.mask.to_array(), expected)
    assert expected.any()
    both = paligemma.to_answer(f"{said} ; <loc0000><loc0000><loc0100><loc0100>{codes}", 100, 200, decode)
    assert both.mask.area > answer.mask.area
    for broken in (
        "",
        "<loc0256><loc0128><loc0768>" + codes,
        said.replace("<seg005>", ""),
        said.replace("0768", "0100"),
    ):
        found = paligemma.to_answer(broken, 100, 200, decode)
        assert (found.mask.area, found.note) == (0, "no mask in the answer")
