"""Runs of models: against a bare PyTorch loop, shared embeddings, a worker, the start of Ray; on a GPU where
there is one, masks encoded there against copying them."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizerFast,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    ViTImageProcessor,
)

from benchmarks.data import temporary_home
from benchmarks.networks import save_sam_vit_huge, smooth
from benchmarks.run import build_coco128
from refbench.adapters.box_prompts import BoxSegmenter, Detections
from refbench.adapters.clipseg import ClipSeg
from refbench.adapters.tensor_masks import encode_tensors
from refbench.adapters.worker import Worker
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.masks.mask import Mask
from refbench.records import Sample
from refbench.runs import images
from refbench.runs.runner import run
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples

EXPRESSIONS_PER_IMAGE = 7
BATCH = 8
TURNS = 5
# About 20 ms of hashing.
WORK = bytes(40_000_000)
# The same in Python.
PYTHON_STEPS = 400_000
LAUNCHES = 1000
WORKER = """
import numpy as np
from worker_sdk import Answer, serve
class Echo(object):
    name = "echo"
    def __init__(self, config, device):
        self.mask = np.zeros((480, 640), bool)
        self.mask[100:300, 200:500] = True
    def segment(self, images, expressions):
        return [self.mask for _ in images]
serve(Echo)
"""


def save_clipseg(folder: Path, small: bool) -> Path:
    """CLIPSeg with random weights: as published (ViT-B/16), or of a size that two cores run in reasonable time."""
    torch.manual_seed(0)
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    made = Tokenizer(
        models.BPE(
            vocab={w: k for k, w in enumerate(words)}, merges=[], unk_token="<|endoftext|>", end_of_word_suffix="</w>"
        )
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = CLIPTokenizerFast(
        tokenizer_object=made, bos_token=words[0], eos_token=words[1], pad_token=words[1], unk_token=words[1]
    )
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": len(words)}
    if small:
        text = {
            **special,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
        vision = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
        vision |= {"image_size": 224, "patch_size": 16}
        config = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=128, extract_layers=[1, 3, 5])
    else:
        vision = {"image_size": 352, "patch_size": 16}
        config = CLIPSegConfig(text_config=special, vision_config=vision)
    network = CLIPSegForImageSegmentation(config)
    if not small:
        smooth(network.decoder)
    network.save_pretrained(folder)
    side = config.vision_config.image_size
    processor = ViTImageProcessor(size={"height": side, "width": side})
    CLIPSegProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def save_sam(folder: Path, small: bool) -> Path:
    """SAM with random weights: ViT-H as published, or of a size that two cores run in reasonable time."""
    if not small:
        return save_sam_vit_huge(folder)
    torch.manual_seed(0)
    vision: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 384}
    vision |= {"image_size": 512, "global_attn_indexes": [1, 3]}
    SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 512})).save_pretrained(folder)
    size = {"size": {"longest_edge": 512}, "pad_size": {"height": 512, "width": 512}}
    SamProcessor(SamImageProcessor(**size)).save_pretrained(folder)
    return folder


@contextmanager
def refbench_home() -> Iterator[Path]:
    """A home with the images of coco128, one expression each."""
    with temporary_home() as folder:
        build_dataset("coco128", build_coco128, Sources(), silent)
        yield folder


@torch.inference_mode()
def bare_clipseg(folder: Path, samples: list[Sample], device: str) -> Callable[[], None]:
    """The loop that one writes by hand: open, preprocess, forward, resize, threshold, to numpy."""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    processor: Any = CLIPSegProcessor.from_pretrained(folder)
    network: Any = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=dtype)
    network.eval().to(device)

    @torch.inference_mode()
    def loop() -> None:
        for first in range(0, len(samples), BATCH):
            batch = samples[first : first + BATCH]
            pictures = [Image.open(s.image_path).convert("RGB") for s in batch]
            ready = processor(text=[s.expression for s in batch], images=pictures, return_tensors="pt", padding=True)
            logits = network(
                input_ids=ready["input_ids"].to(device),
                attention_mask=ready["attention_mask"].to(device),
                pixel_values=ready["pixel_values"].to(device, dtype),
            ).logits.float()
            for one, image in zip(logits.reshape(len(batch), *logits.shape[-2:]), pictures, strict=True):
                heat = F.interpolate(one[None, None], (image.height, image.width), mode="bilinear")[0, 0].sigmoid()
                (heat > 0.5).cpu().numpy()

    return loop


def compare_with_bare_loop(device: str, small: bool) -> dict[str, Any]:
    """Images a second of the bare loop and of a run, the median of turns taken one after the other."""
    with refbench_home() as home, tempfile.TemporaryDirectory() as weights:
        folder = save_clipseg(Path(weights), small)
        samples = load_samples("coco128/all")
        loop = bare_clipseg(folder, samples, device)
        loop()
        ratios, rates = [], []
        for turn in range(TURNS):
            began = time.perf_counter()
            loop()
            bare = time.perf_counter() - began
            # Loading is left out of both: the run tells what it took from the first shard to the last.
            result = run(
                "clipseg", "coco128/all", options={"model": str(folder)}, batch_size=BATCH, device=device,
                out=home / f"run{turn}",
            )  # fmt: skip
            ratios.append(bare / result.seconds)
            rates.append(len(samples) / result.seconds)
    return {
        "images a second of the run": statistics.median(rates),
        f"run against the bare loop on {device} (wanted {'0.95' if small else '0.97'})": statistics.median(ratios),
    }


def shared_embeddings(device: str, small: bool) -> dict[str, Any]:
    """Expressions a second of a SAM whose image is embedded once for seven boxes, against once for each."""
    with tempfile.TemporaryDirectory() as weights:
        folder = save_sam(Path(weights), small)
        rates = {}
        generator = np.random.default_rng(0)
        pictures = [Image.fromarray(generator.integers(0, 255, (480, 640, 3), dtype=np.uint8)) for _ in range(3)]
        found = Detections(torch.tensor([[100.0, 100.0, 400.0, 300.0]]), torch.tensor([0.9]))
        for share in (True, False):
            sam = BoxSegmenter(str(folder), device, "main", share)
            sam.answer(pictures[0], found, "top1", 0.0)
            began = time.perf_counter()
            for image in pictures:
                copy = image.copy()
                for _ in range(EXPRESSIONS_PER_IMAGE):
                    sam.answer(copy, found, "top1", 0.0)
            rates[share] = len(pictures) * EXPRESSIONS_PER_IMAGE / (time.perf_counter() - began)
    return {
        "expressions a second, image embedded once": rates[True],
        "against embedding it for each of seven (wanted 2)": rates[True] / rates[False],
    }


def worker_round_trip() -> dict[str, Any]:
    """Milliseconds a sample of 640 x 480 that a worker costs beside its model: seven expressions about a image."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "echo.py"
        script.write_text(WORKER)
        picture = Path(folder) / "picture.png"
        Image.new("RGB", (640, 480), (90, 120, 30)).save(picture)
        nothing = Mask.empty(480, 640)
        sample = Sample("d/s/0/0", "0", str(picture), 480, 640, "it", "it", "0", "0", (), "", nothing, True)
        worker = Worker(script)
        times = []
        for _ in range(200):
            began = time.perf_counter()
            worker.segment_samples([sample], [None])
            times.append(time.perf_counter() - began)
        worker.close()
    return {"a worker's round trip in ms (wanted 2)": 1000 * statistics.median(times[20:])}


class CostlyPreparation:
    """Preparing an image costs as much as computing it; both hash bytes, which needs one core and not Python's lock."""

    name = "costly-preparation"
    batch_size = 1

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> tuple[int, int, int]:
        self.work()
        return image.height, image.width, len(expressions)

    def work(self) -> None:
        """What preparing an image costs."""
        hashlib.sha256(WORK).digest()

    def forward(self, batch: list[tuple[int, int, int]]) -> list[Mask]:
        for _ in batch:
            hashlib.sha256(WORK).digest()
        return [Mask.empty(height, width) for height, width, count in batch for _ in range(count)]

    def finish(self, batch: list[tuple[int, int, int]], output: list[Mask]) -> list[Mask]:
        return output


class CostlyPython(CostlyPreparation):
    """Preparing takes as long, but is Python code, which other threads of a process wait for."""

    name = "costly-python"
    prepare_in_processes = True

    def work(self) -> None:
        """See `CostlyPreparation`."""
        sum(k * k for k in range(PYTHON_STEPS))


class Launches(CostlyPreparation):
    """Computing is many short calls, as kernels are started on a GPU; each gives up Python's lock and needs it again.
    It keeps the seconds of these calls.
    """

    name = "launches"
    batch_size = 8

    def __init__(self, prepare: Callable[[Image.Image, Sequence[str]], Any], in_processes: bool) -> None:
        self._prepare = prepare
        self.prepare_in_processes = in_processes
        self.seconds: list[float] = []

    def prepare(self, image: Image.Image, expressions: Sequence[str]) -> tuple[int, int, int]:
        self._prepare(image, expressions)
        return image.height, image.width, len(expressions)

    def forward(self, batch: list[tuple[int, int, int]]) -> list[Mask]:
        self.seconds.append(launch())
        return [Mask.empty(height, width) for height, width, count in batch for _ in range(count)]


def launch() -> float:
    """Seconds of many short calls of torch."""
    value = torch.zeros(4)
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        value = value + 1
    return time.perf_counter() - began


def delayed_launches() -> dict[str, Any]:
    """How long short calls take while images are prepared for CLIPSeg in one thread or process, against alone."""
    with refbench_home() as home, tempfile.TemporaryDirectory() as weights, one_at_a_time():
        prepare = ClipSeg(str(save_clipseg(Path(weights), True))).prepare
        launch()
        slower: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(TURNS):
            for in_processes in slower:
                adapter = Launches(prepare, in_processes)
                alone = statistics.median(launch() for _ in range(9))
                run(adapter, "coco128/all", out=home / f"run{turn}-{in_processes}")
                slower[in_processes].append(statistics.median(adapter.seconds) / alone)
    return {
        "short calls beside a preparing thread, times alone": statistics.median(slower[False]),
        "short calls beside a preparing process, times alone": statistics.median(slower[True]),
    }


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """One image is prepared at a time, so that preparing and computing have a core each."""
    before = images.most_at_once
    images.most_at_once = lambda: 1
    try:
        yield
    finally:
        images.most_at_once = before


def preparation_ahead(adapter: CostlyPreparation) -> float:
    """The gain of a run over the same adapter in a loop."""
    with refbench_home() as home:
        samples = load_samples("coco128/all")
        gains = []
        for turn in range(TURNS):
            began = time.perf_counter()
            for sample in samples:
                prepared = adapter.prepare(Image.open(sample.image_path).convert("RGB"), [sample.expression])
                adapter.finish([prepared], adapter.forward([prepared]))
            serial = time.perf_counter() - began
            gains.append(serial / run(adapter, "coco128/all", out=home / f"run{turn}").seconds)
    return statistics.median(gains)


def ray_start() -> dict[str, Any]:
    """Seconds from the call to the end of the first shard, Ray started for it."""
    with refbench_home() as home:
        seen: list[float] = []
        began = time.perf_counter()

        def progress(task: str, done: int, total: int) -> None:
            if done and not seen:
                seen.append(time.perf_counter() - began)

        run("center", "coco128/all", engine="ray", workers=2, out=home / "run", progress=progress)
    return {"Ray to its first shard in seconds (wanted 15)": seen[0]}


def device_encoding() -> dict[str, Any]:
    """Masks of 640 x 480 a second from a GPU: encoded there, against copied and encoded here."""
    masks = [torch.zeros(480, 640, dtype=torch.bool, device="cuda") for _ in range(64)]
    for k, mask in enumerate(masks):
        mask[100 : 200 + 3 * k, 150:400] = True
    encode_tensors(masks)
    began = time.perf_counter()
    for _ in range(10):
        encode_tensors(masks)
    there = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(10):
        for mask in masks:
            Mask.from_array(mask.cpu().numpy())
    here = time.perf_counter() - began
    return {
        "masks a second, encoded on the device": 640 / there,
        "against copying dense masks": here / there,
    }


def measure() -> dict[str, Any]:
    """Everything above; the figures of a GPU where there is one."""
    figures = compare_with_bare_loop("cpu", small=True)
    figures |= shared_embeddings("cpu", small=True)
    figures["preparing in threads, against a loop (wanted 1.7)"] = preparation_ahead(CostlyPreparation())
    figures["preparing in processes, against a loop (wanted 1.7)"] = preparation_ahead(CostlyPython())
    figures |= delayed_launches()
    figures |= worker_round_trip()
    figures |= ray_start()
    if torch.cuda.is_available():
        figures["device"] = torch.cuda.get_device_name()
        figures |= compare_with_bare_loop("cuda", small=False)
        figures |= {f"SAM ViT-H: {k}": v for k, v in shared_embeddings("cuda", small=False).items()}
        figures |= device_encoding()
    return figures
