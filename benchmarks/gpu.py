"""`python -m benchmarks.gpu [SECTION ...] [--small] [--out FOLDER]`: how well a run keeps a GPU busy.

The networks have random weights of the published size, and the images are photographs that come with scikit-image. A
section that fails, or takes too long, takes nothing from the others, and its parts are written as soon as they are
measured. With `--small`, the same code runs on a CPU with small networks, which is what the tests do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from skimage import data
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from transformers import SamProcessor

from benchmarks import networks
from benchmarks.data import temporary_home
from benchmarks.models import save_clipseg
from refbench.adapters.box_prompts import BoxQuestion, BoxSegmenter, Detections, DetectorWithSam
from refbench.adapters.clipseg import ClipSeg
from refbench.adapters.grounded_sam import GroundedSam
from refbench.adapters.qwen_vl_sam import QwenVlSam
from refbench.adapters.sam3 import Sam3
from refbench.adapters.tensor_masks import encode_tensors
from refbench.adapters.torch_settings import better_in_processes, computing, precision_of
from refbench.datasets.builders.base import Built, Sources, build_dataset
from refbench.masks.mask import Mask
from refbench.masks.threads import available_cores
from refbench.records import Answer, Sample
from refbench.runs.folder import RunFolder
from refbench.runs.runner import RunResult, run
from refbench.storage.progress import Progress, silent
from refbench.storage.provenance import git_state
from refbench.storage.samples import load_samples

EXPRESSIONS_PER_IMAGE = 7
WORDS = ("the man on the left", "red dog", "the woman standing in front", "a blue cup", "second person from the right")
ADDRESS = "photographs/all"
TURNS = 2
DIFFERENT_PHOTOGRAPHS = 256
# A section is not begun with less time.
LEAST_SECONDS = 15
RING_AGAIN_SECONDS = 5
# A loading process that says nothing for so long hangs.
LOADER_SECONDS = 25
Figures = dict[str, Any]
# The parts of a section, each as soon as it is measured.
Found = Iterator[tuple[str, Figures]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how large: `small` networks and photographs, and at most `most_images`."""

    small: bool
    device: str
    most_images: int
    seconds_a_turn: float
    folder: Path
    began: float

    def images(self, wanted: int) -> int:
        return min(wanted, self.most_images)

    def say(self, what: str) -> None:
        """A line with the time, so that the log tells where time went."""
        click.echo(f"  [{time.perf_counter() - self.began:5.1f} s] {what}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photographs."""
        return (48, 64) if self.small else (480, 640)

    @property
    def loading_processes(self) -> int:
        return 1 if self.small else max(1, available_cores() - 2)


def saved(setting: Setting, name: str, save: Callable[[Path], Path]) -> str:
    """The folder of a network with random weights, drawn on the device, which is much faster; made once."""
    folder = setting.folder / name
    if not folder.exists():
        with torch.device(setting.device):
            save(folder)
        setting.say(f"random weights of {name}")
    return str(folder)


def saved_sam(setting: Setting) -> str:
    small = setting.small
    return saved(setting, "sam", (lambda f: networks.save_sam("sam", f)) if small else networks.save_sam_vit_huge)


def saved_clipseg(setting: Setting) -> str:
    return saved(setting, "clipseg", lambda f: save_clipseg(f, setting.small))


def photographs(folder: Path, count: int, height: int, width: int) -> list[Path]:
    """JPEG files cut at random places from the photographs of scikit-image."""
    pictures = [Image.fromarray(p) for p in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())]
    generator = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(min(count, DIFFERENT_PHOTOGRAPHS)):
        whole = pictures[number % len(pictures)]
        share = generator.uniform(0.5, 1)
        w, h = int(whole.width * share), int(whole.height * share)
        left = int(generator.integers(0, whole.width - w + 1))
        top = int(generator.integers(0, whole.height - h + 1))
        cut = whole.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BILINEAR)
        paths.append(folder / f"{number}.jpg")
        cut.save(paths[-1], quality=90)
    return [paths[number % len(paths)] for number in range(count)]


@contextlib.contextmanager
def questions(setting: Setting, images: int, each: int = EXPRESSIONS_PER_IMAGE) -> Iterator[Path]:
    """A home whose split `photographs/all` has `each` expressions about each of `images` photographs."""
    height, width = setting.size

    def build(dataset: str, sources: Sources, folder: Path, progress: Progress) -> Built:
        nothing = Mask.empty(height, width)
        samples = [
            Sample(
                f"{dataset}/all/{n}/{k}", str(n), str(path), height, width, WORDS[k % len(WORDS)],
                WORDS[k % len(WORDS)], str(n), str(k), (), "", nothing, True,
            )
            for n, path in enumerate(paths)
            for k in range(each)
        ]  # fmt: skip
        return Built(dataset, 1, {"all": samples}, [], [], "")

    with temporary_home() as home:
        paths = photographs(home / "photographs", images, height, width)
        build_dataset("photographs", build, Sources(), silent)
        yield home


class FixedBoxes(DetectorWithSam):
    """SAM alone: the box of an expression depends on its place in the list, and costs nothing."""

    name = "fixed-boxes"
    batch_size = 32

    def __init__(self, sam: str, device: str, precision: str = "float32", compile: bool = False) -> None:
        self.policy, self.threshold = "top1", 0.0
        self.device = torch.device(device)
        self.prepare_in_processes = better_in_processes(self.device)
        self.sam = BoxSegmenter(sam, device, "main", precision=precision, compile=compile)
        self.weights_sha256 = self.sam.network.weights_sha256

    def detector_inputs(
        self, image: Image.Image, expressions: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        return {"boxes": boxes_for(image.height, image.width, len(expressions))}, [""] * len(expressions)

    def detect(self, question: BoxQuestion) -> list[Detections]:
        return [Detections(box[None], torch.ones(1)) for box in question.inputs["boxes"]]


class PrefillOnly(QwenVlSam):
    """Qwen-VL whose answer is one token, which random weights make meaningless: an empty mask without SAM."""

    def answer(self, said: str, image: Image.Image, *more: Any) -> Answer:
        return Answer(Mask.empty(image.height, image.width), raw=said)


def boxes_for(height: int, width: int, count: int) -> torch.Tensor:
    """Boxes, float (count, 4), of growing size."""
    share = torch.linspace(0.3, 0.9, count)[:, None]
    return torch.tensor([[0.05, 0.05, 1.0, 1.0]]) * share * torch.tensor([[width, height, width, height]])


class Groups(Dataset[Any]):
    """The images of a split for a loop by hand, each with its expressions, prepared in a process of the loader."""

    def __init__(self, samples: Sequence[Sample], prepare: Callable[[Image.Image], torch.Tensor]) -> None:
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.image_id, []).append(sample)
        self.groups = list(groups.values())
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, tuple[int, int], list[str]]:
        group = self.groups[number]
        image = Image.open(group[0].image_path).convert("RGB")
        return self.prepare(image), (image.height, image.width), [s.expression for s in group]


def loader(groups: Groups, images: int, setting: Setting) -> DataLoader[Any]:
    return DataLoader(
        groups, batch_size=images, num_workers=setting.loading_processes, pin_memory=setting.device != "cpu",
        collate_fn=list, prefetch_factor=4, timeout=LOADER_SECONDS, persistent_workers=True,
    )  # fmt: skip


def clipseg_by_hand(adapter: ClipSeg, setting: Setting, each: int, limit: int) -> Callable[[], None]:
    """The loop that an expert writes: loading processes, pinned memory, half precision, the same batch."""
    processor, network, dtype = adapter.processor, adapter.network, adapter.dtype

    def prepare(image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return pixels.to(dtype)

    batches = loader(Groups(load_samples(ADDRESS)[:limit], prepare), max(1, adapter.batch_size // each), setting)

    @torch.inference_mode()
    def loop() -> None:
        for batch in batches:
            pixels = torch.cat([p.to(adapter.device, non_blocking=True) for p, _, _ in batch])
            texts = [e for _, _, expressions in batch for e in expressions]
            tokens = processor.tokenizer(texts, return_tensors="pt", padding=True).to(adapter.device)
            layers = network.clip.get_image_features(pixel_values=pixels, output_hidden_states=True).hidden_states
            condition = network.get_conditional_embeddings(
                batch_size=len(texts), input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            repeated = [layers[k + 1].repeat_interleave(each, dim=0) for k in network.extract_layers]
            logits = network.decoder(repeated, condition).logits.float().reshape(len(batch), each, *pixels.shape[-2:])
            for own, (_, size, _) in zip(logits, batch, strict=True):
                (F.interpolate(own[:, None], size, mode="bilinear").sigmoid() > 0.5).cpu().numpy()

    return loop


def sam_by_hand(adapter: FixedBoxes, weights: str, setting: Setting, limit: int) -> Callable[[], None]:
    """The same for SAM with boxes: an image is embedded once, and all its boxes are decoded together."""
    sam = adapter.sam.network
    processor = SamProcessor.from_pretrained(weights).image_processor

    def prepare(image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
        return pixels

    batches = loader(Groups(load_samples(ADDRESS)[:limit], prepare), 2, setting)

    @torch.inference_mode()
    def loop() -> None:
        for batch in batches:
            for pixels, (height, width), expressions in batch:
                scale = sam.side_px / max(height, width)
                boxes = boxes_for(height, width, len(expressions)) * scale
                with computing(sam.device, sam.dtype):
                    features = sam.network.get_image_embeddings(pixels.to(sam.device, non_blocking=True))
                    output = sam.network(
                        image_embeddings=features.expand(len(boxes), -1, -1, -1),
                        input_boxes=boxes[:, None].to(sam.device),
                        multimask_output=False,
                    )
                logits = F.interpolate(output.pred_masks[:, 0].float(), (sam.side_px, sam.side_px), mode="bilinear")
                logits = logits[..., : round(height * scale), : round(width * scale)]
                (F.interpolate(logits, (height, width), mode="bilinear") > 0).cpu().numpy()

    return loop


def timed_run(adapter: Any, setting: Setting, home: Path, name: str, **more: Any) -> RunResult:
    """A run of an adapter that is already loaded."""
    # A folder of its own: an existing one would be resumed.
    number = len(list((home / "runs").iterdir())) if (home / "runs").exists() else 0
    return run(adapter, ADDRESS, device=setting.device, out=home / "runs" / f"{number}-{name}", **more)


def rate(result: RunResult) -> float:
    return float(result.samples / result.seconds)


def as_many_as_fit(adapter: Any, setting: Setting, home: Path, each: int) -> int:
    """The number of samples that take about `seconds_a_turn`; first calls choose kernels, and are not counted."""
    available: int = len(load_samples(ADDRESS))
    few = min(available, max(4 * adapter.batch_size, 4 * each))
    result = timed_run(adapter, setting, home, "first", limit=few)
    for name in ("second", "third"):
        result = timed_run(adapter, setting, home, name, limit=few)
        setting.say(f"{name} {few} expressions: {result.bottleneck}")
    wanted: int = max(few, int(setting.seconds_a_turn * rate(result)))
    return min(available, wanted) // each * each


def against_loop(adapter: Any, setting: Setting, home: Path, limit: int, loop: Callable[[], None]) -> Figures:
    """Expressions a second of a run, and its share of the loop's, as the median of turns."""
    began = time.perf_counter()
    loop()
    setting.say(f"loop by hand, with its start: {time.perf_counter() - began:.1f} s for {limit} expressions")
    rates, loops, shares, last = [], [], [], None
    for turn in range(TURNS if setting.device != "cpu" else 1):
        began = time.perf_counter()
        loop()
        seconds = time.perf_counter() - began
        last = timed_run(adapter, setting, home, f"turn{turn}", limit=limit)
        rates.append(rate(last))
        loops.append(limit / seconds)
        shares.append(seconds / last.seconds)
    return {
        "expressions a second": statistics.median(rates),
        "expressions a second of the loop": statistics.median(loops),
        "share of the loop": statistics.median(shares),
        **told(last),
    }


def told(result: RunResult | None) -> Figures:
    """What a run says of itself."""
    assert result is not None
    if result.failures:
        raise RuntimeError(
            f"{result.failures} of {result.samples} samples failed: {RunFolder(result.folder).first_error()}"
        )
    timings = RunFolder(result.folder).timings()
    busy = [row.device_busy_percent for row in timings if row.device_busy_percent is not None]
    device = max((row.peak_device_bytes or 0 for row in timings), default=0)
    return {
        "device busy as NVML says (%)": statistics.mean(busy) if busy else None,
        "peak device memory (GiB)": device / 2**30,
        "stages (ms a sample)": {name: float(spent) for name, spent, _ in result.stages},
        "said": result.bottleneck,
    }


def traced(work: Callable[[], Any], expressions: int, setting: Setting) -> Figures:
    """The share of the time in which a kernel ran, and the bytes copied, by CUPTI."""
    if setting.device == "cpu":
        work()
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kernels = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    copies = [e for e in events if e.get("cat") == "gpu_memcpy"]
    busy, end = 0.0, 0.0
    for first, last in kernels:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    bytes_of = {way: sum(e["args"].get("bytes", 0) for e in copies if way in e["name"]) for way in ("HtoD", "DtoH")}
    return {
        "device busy while traced (%)": 100 * busy / (end - kernels[0][0]),
        "kernels an expression": len(kernels) / expressions,
        "kB to the device, an expression": bytes_of["HtoD"] / expressions / 1000,
        "kB from the device, an expression": bytes_of["DtoH"] / expressions / 1000,
    }


def traced_run(adapter: Any, setting: Setting, home: Path, limit: int) -> Figures:
    return traced(lambda: timed_run(adapter, setting, home, "traced", limit=limit), limit, setting)


def differing_share(a: RunResult, b: RunResult) -> float:
    """Percent of the pixels in which the masks of two runs differ."""
    masks = [[p.mask.to_array() for p in RunFolder(r.folder).predictions()] for r in (a, b)]
    return 100 * float(np.mean([(x != y).mean() for x, y in zip(*masks, strict=True)]))


def against_cpu(make: Callable[[str], Any], adapter: Any, setting: Setting, home: Path, images: int) -> Figures:
    """How much the masks of a device differ from those of the CPU in float32."""
    limit = images * EXPRESSIONS_PER_IMAGE
    there = timed_run(adapter, setting, home, "there", limit=limit)
    here = run(make("cpu"), ADDRESS, device="cpu", out=home / "runs" / "here", limit=limit)
    return {"pixels unlike the CPU's (%)": differing_share(there, here)}


def clipseg(setting: Setting) -> Found:
    """CLIPSeg ViT-B/16: seven expressions an image, and one."""
    weights = saved_clipseg(setting)
    adapter = ClipSeg(weights, setting.device)
    for each, images in ((EXPRESSIONS_PER_IMAGE, 1000), (1, 4000)):
        name = f"{each} expressions an image" if each > 1 else "1 expression an image"
        with questions(setting, setting.images(images), each) as home:
            # Every process of the loop must have a batch to prepare.
            fair = setting.loading_processes * adapter.batch_size
            limit = min(setting.images(images) * each, max(fair, as_many_as_fit(adapter, setting, home, each)))
            limit = limit // each * each
            found = traced_run(adapter, setting, home, limit)
            yield name, found
            loop = clipseg_by_hand(adapter, setting, each, limit)
            found |= against_loop(adapter, setting, home, limit, loop)
            yield name, found
            if each > 1:
                found |= against_cpu(lambda device: ClipSeg(weights, device), adapter, setting, home, 4)
                yield name, found


def sam(setting: Setting) -> Found:
    """SAM ViT-H with a box for each expression, in bfloat16 and in float32."""
    weights = saved_sam(setting)
    adapter = FixedBoxes(weights, setting.device)
    with questions(setting, setting.images(400)) as home:
        for precision in ("bfloat16", "float32"):
            adapter.sam.network.dtype = precision_of(precision)
            limit = as_many_as_fit(adapter, setting, home, EXPRESSIONS_PER_IMAGE)
            found = traced_run(adapter, setting, home, limit)
            yield precision, found
            found |= against_loop(adapter, setting, home, limit, sam_by_hand(adapter, weights, setting, limit))
            yield precision, found


def sam_against_cpu(setting: Setting) -> Found:
    """SAM ViT-B on the device and on the CPU, which would take minutes for an image of ViT-H."""
    weights = saved_sam(setting) if setting.small else saved(setting, "sam-base", networks.save_sam_vit_base)
    adapter = FixedBoxes(weights, setting.device)
    with questions(setting, setting.images(2)) as home:
        for precision in ("bfloat16", "float32"):
            adapter.sam.network.dtype = precision_of(precision)
            yield precision, against_cpu(lambda device: FixedBoxes(weights, device), adapter, setting, home, 1)


def grounded(setting: Setting) -> Found:
    """Grounding DINO base with SAM ViT-H."""
    save = networks.save_grounding_dino if setting.small else networks.save_grounding_dino_base
    detector = saved(setting, "grounding-dino", save)
    weights = saved_sam(setting)
    yield from measured(
        lambda precision: GroundedSam(detector, weights, setting.device, precision=precision),
        ("bfloat16", "float32"), setting,
    )  # fmt: skip


def sam3(setting: Setting) -> Found:
    """SAM 3 with the expression as its concept."""
    weights = saved(setting, "sam3", networks.save_sam3 if setting.small else networks.save_sam3_full)
    yield from measured(
        lambda precision: Sam3(weights, setting.device, precision=precision), ("bfloat16", "float32"), setting
    )


def vlm(setting: Setting) -> Found:
    """The prefill of a VLM with 2 billion weights: its answer is one token."""
    weights = saved(setting, "vlm", networks.save_qwen_vl if setting.small else networks.save_qwen2_vl_2b)
    box = saved(setting, "small-sam", lambda f: networks.save_sam("sam", f))
    made = lambda _: PrefillOnly(weights, box, setting.device, max_new_tokens=1)  # noqa: E731
    yield from measured(made, ("bfloat16",), setting)


def measured(make: Callable[[str], Any], precisions: Sequence[str], setting: Setting) -> Found:
    """The figures of an adapter in each precision, without a loop by hand."""
    for precision in precisions:
        adapter = make(precision)
        setting.say(f"loaded for {precision}")
        with questions(setting, setting.images(200)) as home:
            limit = as_many_as_fit(adapter, setting, home, EXPRESSIONS_PER_IMAGE)
            result = timed_run(adapter, setting, home, "run", limit=limit)
            found = {"expressions a second": rate(result), **told(result)}
            yield precision, found | traced_run(adapter, setting, home, limit)
        del adapter


def compiled(setting: Setting) -> Found:
    """What torch.compile gains for SAM ViT-H in bfloat16, and how long it takes."""
    weights = saved_sam(setting)
    rates: dict[bool, float] = {}
    with questions(setting, setting.images(100)) as home:
        for compile in (False, True):
            adapter = FixedBoxes(weights, setting.device, "bfloat16", compile=compile)
            began = time.perf_counter()
            timed_run(adapter, setting, home, f"first{compile}", limit=EXPRESSIONS_PER_IMAGE)
            first = time.perf_counter() - began
            rates[compile] = rate(timed_run(adapter, setting, home, f"run{compile}"))
            del adapter
    found = {
        "expressions a second": rates[True],
        "compiled against not compiled": rates[True] / rates[False],
        "seconds of the first image": first,
    }
    yield "bfloat16", found


def deterministic(setting: Setting) -> Found:
    """What `--deterministic` costs CLIPSeg, and whether two such runs have the same bytes."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    adapter = ClipSeg(saved_clipseg(setting), setting.device)
    with questions(setting, setting.images(300)) as home:
        timed_run(adapter, setting, home, "first")
        plain = timed_run(adapter, setting, home, "plain")
        runs = [timed_run(adapter, setting, home, f"same{k}", deterministic=True) for k in range(2)]
        bytes_of = [
            [p.read_bytes() for p in sorted(r.folder.rglob("*.parquet")) if "timings" not in p.name] for r in runs
        ]
    found = {
        "expressions a second": rate(runs[1]),
        "of the speed without it": rate(runs[1]) / rate(plain),
        "two runs have the same bytes": bytes_of[0] == bytes_of[1],
    }
    yield "clipseg", found


def memory(setting: Setting) -> Found:
    """A batch that does not fit into memory; encoding on the device against copying dense masks."""
    adapter = ClipSeg(saved_clipseg(setting), setting.device)
    figures: Figures = {}
    with questions(setting, setting.images(100)) as home:
        said: list[str] = []
        if setting.device != "cpu":
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(1.2 * 2**30 / whole)
        try:
            size = 512 if setting.device != "cpu" else 16
            result = timed_run(adapter, setting, home, "large", batch_size=size, log=said.append)
        finally:
            if setting.device != "cpu":
                torch.cuda.set_per_process_memory_fraction(1.0)
        if setting.device != "cpu" and not any("out of memory" in line for line in said):
            raise RuntimeError("the batch fitted into memory: nothing was measured; use a larger one")
        figures["failures after out of memory"] = result.failures
        figures["log"] = said[:3]
    height, width = setting.size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = [
        ((rows - height / 2) ** 2 / (1 + k) + (columns - width / 2) ** 2 < (height / 3) ** 2).to(setting.device)
        for k in range(64)
    ]
    times = []
    for encode in (encode_tensors, lambda all: [Mask.from_array(m.cpu().numpy()) for m in all]):
        encode(masks)
        began = time.perf_counter()
        for _ in range(20 if setting.device != "cpu" else 2):
            encode(masks)
        times.append(time.perf_counter() - began)
    figures["masks a second, encoded on the device"] = 64 * (20 if setting.device != "cpu" else 2) / times[0]
    figures["against copying dense masks"] = times[1] / times[0]
    yield "clipseg", figures


SECTIONS: dict[str, Callable[[Setting], Found]] = {
    "clipseg": clipseg,
    "sam": sam,
    "sam_against_cpu": sam_against_cpu,
    "memory": memory,
    "grounded": grounded,
    "sam3": sam3,
    "vlm": vlm,
    "compiled": compiled,
    # Last, since it changes the settings of torch.
    "deterministic": deterministic,
}


def rows(figures: Figures, before: str = "") -> Iterator[str]:
    """The figures as lines of text."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield f"{before}{name}"
            yield from rows(value, before + "  ")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            yield f"{before}{name:<44} {shown}"


def print_table(folder: Path, sections: Sequence[str]) -> None:
    """The results of the given sections in a folder."""
    for section in sections:
        path = folder / f"{section}.json"
        if path.exists():
            click.echo("\n".join(rows({section: json.loads(path.read_text())[section]})))


class TooLong(BaseException):
    """A section has used up its time; no run may take it for an error of its adapter."""


def ring(*_: Any) -> None:
    raise TooLong("the section has used up its time")


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--small", is_flag=True, help="Small networks on the CPU, to try the code.")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--images", default=4000, help="Measure at most this many images.")
@click.option("--seconds", default=150, help="Time for a section.")
@click.option("--all-seconds", default=420, help="Time for all sections; one that would not fit is left out.")
@click.option("--turn", default=2.5, help="Time for a turn of a measurement.")
@click.option("--out", type=click.Path(path_type=Path), default="benchmarks/results/gpu", help="Folder of the figures.")
def main(
    sections: tuple[str, ...],
    small: bool,
    device: str,
    images: int,
    seconds: int,
    all_seconds: int,
    turn: float,
    out: Path,
) -> None:
    """Measure the given sections, or all of them."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if small else device
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    signal.signal(signal.SIGALRM, ring)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(small, device, min(images, 6) if small else images, turn, Path(folder), began)
        for section in sections or tuple(SECTIONS):
            left = int(all_seconds - (time.perf_counter() - began))
            figures: Figures = {
                "hardware": f"{name}, {available_cores()} cores",
                "torch": torch.__version__,
                "git": git_state(Path(__file__).parent.parent),
                section: {},
            }
            setting.say(f"{section} ...")
            if left < LEAST_SECONDS:
                failed.append(section)
                setting.say("left out, no time")
                continue
            # Rings again: a library may drop what is raised while it calls back.
            signal.setitimer(signal.ITIMER_REAL, min(seconds, left), RING_AGAIN_SECONDS)
            try:
                for part, found in SECTIONS[section](setting):
                    figures[section][part] = found
                    (out / f"{section}.json").write_text(json.dumps(figures, indent=2) + "\n")
                    setting.say(part)
            except (Exception, TooLong):  # noqa: BLE001 (the other sections go on)
                failed.append(section)
                click.echo(traceback.format_exc())
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    print_table(out, [name for name in sections or SECTIONS if name not in failed])
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main())
