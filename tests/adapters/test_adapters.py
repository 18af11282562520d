"""Built-in adapters, and the test of the contract on good and bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters.exact_adapters import Leaky, Misbehaving, Threshold
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizerFast,
    ViTImageProcessor,
)

from refbench import load_samples, run, score
from refbench.adapters.baselines import Center, Everything, NoisyOracle, Nothing
from refbench.adapters.contract import FAILED, NOTE, OK, check_adapter
from refbench.adapters.tiny.adapter import WEIGHTS, Tiny
from refbench.adapters.tiny.model import MIRRORED, swap_words
from refbench.adapters.tiny.train import UPSIDE_DOWN
from refbench.errors import AdapterError
from refbench.plugins.loading import load_adapter
from refbench.runs.folder import RunFolder
from refbench.storage.files import read_table
from refbench.storage.predictions import predictions_from_table
from refbench.storage.samples import load_objects


@pytest.mark.slow
def test_floors(embedded: Path) -> None:
    samples = load_samples("snapshots/test")[:5]
    images = [None] * 5
    for mask, sample in zip(Center().segment_samples(samples, images), samples, strict=True):
        pixels = mask.to_array()
        assert mask.area == pytest.approx(sample.height * sample.width / 4, rel=0.02)
        assert np.array_equal(pixels, pixels[::-1, ::-1])
    assert all(m.area == 0 for m in Nothing().segment_samples(samples, images))
    assert [m.area for m in Everything().segment_samples(samples, images)] == [s.height * s.width for s in samples]


@pytest.mark.slow
def test_noisy_oracle_spoils_by_what_it_is_told(embedded: Path) -> None:
    samples = [s for s in load_samples("scenes/val") if not s.no_target]
    images = [None] * len(samples)
    assert NoisyOracle().segment_samples(samples, images) == [s.target for s in samples]
    grown = NoisyOracle(dilate=2).segment_samples(samples, images)
    shrunk = NoisyOracle(dilate=-2).segment_samples(samples, images)
    for s, g, e in zip(samples, grown, shrunk, strict=True):
        assert (g.to_array() >= s.target.to_array()).all()
        assert (e.to_array() <= s.target.to_array()).all()
    swapped = NoisyOracle(swap=0.3, seed=1).segment_samples(samples, images)
    share = np.mean([a != s.target for a, s in zip(swapped, samples, strict=True)])
    assert 0.2 < share < 0.4
    masks = {o.image_id: [] for o in load_objects("scenes")}
    for o in load_objects("scenes"):
        masks[o.image_id].append(o.mask)
    assert all(a in masks[s.image_id] for a, s in zip(swapped, samples, strict=True))
    # The draw belongs to the sample, not to its place in the run.
    assert NoisyOracle(swap=0.3, shift=4, seed=1).segment_samples(samples[::-1], images)[::-1] == NoisyOracle(
        swap=0.3, shift=4, seed=1
    ).segment_samples(samples, images)
    for wrong in ({"swap": 1.5}, {"shift": -1}):
        with pytest.raises(AdapterError):
            NoisyOracle(**wrong)


@pytest.mark.slow
def test_tiny_reaches_what_is_promised(embedded: Path, tmp_path: Path) -> None:
    scored = score(run("tiny", "scenes/test", out=tmp_path / "run").folder)
    assert scored.summaries["refbench"].metrics["cumulative_iou"].value >= 70
    assert WEIGHTS.stat().st_size <= 2_000_000


@pytest.mark.slow
def test_tiny_in_batches_differs_by_float_noise_only(embedded: Path, tmp_path: Path) -> None:
    masks = {}
    for size in (1, 7, 32):
        folder = run("tiny", "scenes/val", batch_size=size, out=tmp_path / str(size)).folder
        rows = [p for path in RunFolder(folder).written for p in predictions_from_table(read_table(path))]
        masks[size] = [p.mask.to_array() for p in rows]
    for size in (1, 7):
        differing = sum(int((a != b).sum()) for a, b in zip(masks[size], masks[32], strict=True))
        assert differing / sum(m.size for m in masks[32]) < 1e-4


def test_tiny_refuses_weights_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for path in (tmp_path / "w.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(AdapterError, match="is not a weights file of the adapter `tiny`"):
            Tiny(weights=path)


def test_mirrored_words() -> None:
    assert swap_words("the second star from the left", MIRRORED) == "the second star from the right"
    assert swap_words("rightmost fork", MIRRORED) == "leftmost fork"
    assert swap_words("top left star above the ring", MIRRORED | UPSIDE_DOWN) == "bottom right star below the ring"


@pytest.fixture(scope="session")
def clipseg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIPSeg from a small random config, saved and loaded as users do."""
    folder = tmp_path_factory.mktemp("clipseg")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", "!", "a", "b", "the", "red</w>", "a</w>", "photo</w>"]
    vocabulary = {w: k for k, w in enumerate(words)} | {chr(c): k for k, c in enumerate(range(99, 123), len(words))}
    vocabulary |= {f"{chr(c)}</w>": len(vocabulary) + k for k, c in enumerate(range(98, 123))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = CLIPTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=77,
    )
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPSegProcessor(ViTImageProcessor(size=size, do_resize=True), fast).save_pretrained(folder)
    return folder


def test_clipseg_loads_and_runs_as_users_do(clipseg_folder: Path, embedded: Path, tmp_path: Path) -> None:
    options = {"model": str(clipseg_folder), "threshold": "0.4"}
    result = run("clipseg", "snapshots/test", options=options, limit=20, batch_size=6, out=tmp_path / "run")
    assert result.failures == 0
    info = json.loads((result.folder / "run.json").read_text())
    assert len(info["weights_sha256"]) == 64
    checks = check_adapter(load_adapter("clipseg", {"model": str(clipseg_folder)}))
    assert {c.name: c.detail for c in checks if c.verdict == FAILED} == {}


def test_clipseg_prepares_in_processes_what_it_prepares_in_threads(
    clipseg_folder: Path, embedded: Path, tmp_path: Path
) -> None:
    adapter = load_adapter("clipseg", {"model": str(clipseg_folder)})
    said: list[str] = []
    shards = []
    for in_processes in (False, True):
        adapter.prepare_in_processes = in_processes
        result = run(adapter, "snapshots/test", batch_size=6, out=tmp_path / f"{in_processes}", log=said.append)
        shards.append([path.read_bytes() for path in RunFolder(result.folder).shards])
    assert shards[0] == shards[1]
    assert said == []


def test_clipseg_refuses_weights_that_would_be_random(clipseg_folder: Path, tmp_path: Path) -> None:
    for file in clipseg_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(k for k in sorted(weights) if k.startswith("decoder."))]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        AdapterError, match=r"lacks 1 weights of CLIPSegForImageSegmentation, for example .*; these weights would be"
    ):
        load_adapter("clipseg", {"model": str(tmp_path)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(clipseg_folder: Path, embedded: Path, tmp_path: Path) -> None:
    options = {"model": str(clipseg_folder)}
    said: list[str] = []
    a = run("clipseg", "snapshots/test", options=options, device="cuda:0", out=tmp_path / "a", log=said.append)
    assert a.failures == 0
    # Such as that processes could not prepare its images.
    assert said == []
    cpu = score(run("tiny", "scenes/val", out=tmp_path / "cpu").folder).summaries["refbench"]
    gpu = score(run("tiny", "scenes/val", device="cuda:0", out=tmp_path / "gpu").folder).summaries["refbench"]
    difference = cpu.metrics["cumulative_iou"].value - gpu.metrics["cumulative_iou"].value
    assert abs(difference) < 0.5


@pytest.mark.parametrize("name", ["nothing", "everything", "center", "noisy-oracle"])
def test_the_baselines_keep_the_contract(name: str) -> None:
    assert {c.verdict for c in check_adapter(load_adapter(name, {}))} == {OK}


@pytest.mark.slow
def test_tiny_keeps_the_contract() -> None:
    verdicts = {c.name: c.verdict for c in check_adapter(Tiny())}
    assert FAILED not in verdicts.values()
    assert verdicts["determinism: the same input twice"] == OK
    # Floats may move with the batch; then the share is told.
    assert verdicts["batch independence: batches of 1, 7 and 32"] in (OK, NOTE)


@pytest.mark.parametrize(
    ("adapter", "broken"),
    [
        (Threshold(), set()),
        (Leaky(), {"batch independence: batches of 1, 7 and 32"}),
        (Misbehaving("float"), {"masks: number, dtype and size", "image: 1 x 1", "expression: empty"}),
        (Misbehaving("size"), {"masks: number, dtype and size", "image: grey"}),
        (Misbehaving("few"), {"order: each answer belongs to its expression"}),
        (Misbehaving("raise", "man"), {"expression: 2,000 words"}),
    ],
)
def test_the_contract_test_finds_what_is_wrong(adapter: object, broken: set[str]) -> None:
    failed = {c.name for c in check_adapter(adapter) if c.verdict == FAILED}
    assert broken <= failed
    if not broken:
        assert not failed


def test_an_adapter_that_reverses_or_changes_its_mind() -> None:
    class Reversing(Threshold):
        def segment(self, images, expressions):  # type: ignore[no-untyped-def]
            return super().segment(images, expressions)[::-1]

    class Moody(Threshold):
        def segment(self, images, expressions):  # type: ignore[no-untyped-def]
            self.seconds += 1e-9
            return [np.asarray(i.convert("L")) > (self.seconds * 1e10) % 80 + 90 for i in images]

    class Nameless:
        def segment(self, images, expressions):  # type: ignore[no-untyped-def]
            return [np.zeros((i.height, i.width), bool) for i in images]

    failed = {
        kind.__name__: {c.name for c in check_adapter(kind()) if c.verdict == FAILED}
        for kind in (Reversing, Moody, Nameless)
    }
    assert "order: each answer belongs to its expression" in failed["Reversing"]
    assert "determinism: the same input twice" in failed["Moody"]
    assert failed["Nameless"] == {"name and method"}


def test_tensors_and_masks_are_taken(embedded: Path, tmp_path: Path) -> None:
    class Tensors(Threshold):
        name = "tensors"

        def segment(self, images, expressions):  # type: ignore[no-untyped-def]
            return [torch.from_numpy(np.asarray(i.convert("L")) > 90).requires_grad_(False) for i in images]

    class Pictures(Threshold):
        name = "pictures"

        def segment(self, images: list[Image.Image], expressions: list[str]) -> list[np.ndarray]:
            return [np.asarray(i.convert("L")) > 90 for i in images]

    a = run(Tensors(), "snapshots/test", out=tmp_path / "a").folder
    b = run(Pictures(), "snapshots/test", out=tmp_path / "b").folder
    assert score(a).summaries == score(b).summaries
