"""Real data for the measurements: $REFBENCH_TEST_DATA, as in the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from refbench.masks.mask import Mask
from refbench.records import Sample


def test_data() -> Path:
    given = os.environ.get("REFBENCH_TEST_DATA")
    path = Path(given) if given else Path(__file__).parent.parent.parent / "shared" / "data"
    if not path.is_dir():
        raise click.ClickException("the benchmarks measure on real data: set REFBENCH_TEST_DATA to its folder")
    return path


def coco128_pairs() -> tuple[list[Mask], list[Mask]]:
    """Every pair of masks of one image in coco128: 14,937 pairs of real annotations."""
    content = json.loads((test_data() / "coco128" / "annotations" / "instances_train2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    masks: dict[int, list[Mask]] = defaultdict(list)
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        size = sizes[annotation["image_id"]]
        made = (
            Mask.from_polygons(segmentation, *size) if isinstance(segmentation, list) else Mask.from_rle(segmentation)
        )
        masks[annotation["image_id"]].append(made)
    pairs = [(a, b) for group in masks.values() for a in group for b in group]
    return [a for a, _ in pairs], [b for _, b in pairs]


def moved_targets(samples: Sequence[Sample]) -> dict[str, Mask]:
    """Plausible predictions, ref -> mask: the target a few pixels beside its place."""
    moved: dict[str, Mask] = {}
    for s in samples:
        if s.ref_id not in moved:
            moved[s.ref_id] = Mask.from_array(np.roll(s.target.to_array(), (3, -5), axis=(0, 1)))
    return moved


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """The fastest of some repeats: what the machine can do when nothing else is in the way."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A $REFBENCH_HOME for as long as it takes."""
    before = os.environ.get("REFBENCH_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFBENCH_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["REFBENCH_HOME"]
            else:
                os.environ["REFBENCH_HOME"] = before


# A child begins with its parent's peak memory in its books, so a small process of its own starts and measures it.
MEASURE = """
import os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status))
"""


def process_cost(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command, from its start to its end."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], check=True, capture_output=True, text=True)
    seconds, megabytes, code = (float(word) for word in done.stdout.split())
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code:.0f}")
    return seconds, megabytes
