"""`refbench score` and `compare` as whole processes on splits of 10^5 and 10^6 samples, and the sums by NumPy.

The split is the published RefCOCO val again and again, and its images count as new ones. REFBENCH_LARGEST=10000000
adds a larger one, which takes ten minutes and 7 GB of the disk.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from benchmarks.data import moved_targets, process_cost, temporary_home, test_data
from refbench.datasets.builders import refer
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.storage.manifest import dataset_folder, read_manifest, split_path
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples

SIZES = (100_000, 1_000_000)
ROWS_A_GROUP = 20_000


def measure() -> dict[str, Any]:
    """Seconds and peak memory of each process, and how both grow with the samples."""
    largest = int(os.environ.get("REFBENCH_LARGEST", "0"))
    with temporary_home() as folder:
        build_dataset("refcoco", refer.build, Sources(test_data() / "whole-splits" / "refer"), silent)
        samples = load_samples("refcoco/val")
        moved = moved_targets(samples)
        figures: dict[str, Any] = {}
        cost: dict[tuple[str, int], tuple[float, float]] = {}
        sizes = (*SIZES, largest) if largest else SIZES
        for n in sizes:
            address = repeated_split(n, folder / f"{n}.jsonl", samples, moved)
            out = folder / f"scored{n}"
            score = ["score", str(folder / f"{n}.jsonl"), "--dataset", address, "--out", str(out)]
            ways = {"score": score, "compare": ["compare", str(out), str(out)]}
            for name, arguments in ways.items():
                cost[name, n] = process_cost([sys.executable, "-m", "refbench", *arguments])
                figures[f"{name} of {n} samples, s"], figures[f"{name} of {n} samples, MB"] = cost[name, n]
            figures[f"score of {n} samples, the sums are NumPy's"] = _sums_agree(out, n, samples, moved)
            (folder / f"{n}.jsonl").unlink()
        for name in ("score", "compare"):
            for few, many in itertools.pairwise(sizes):
                (seconds, megabytes), (seconds_many, megabytes_many) = cost[name, few], cost[name, many]
                figures[f"{name}, {many // few} times the samples: times the seconds"] = seconds_many / seconds
                more = (megabytes_many - megabytes) / (many - few)
                figures[f"{name}, bytes for each sample from {few} to {many}"] = 1e6 * more
        return figures


def repeated_split(n: int, predictions: Path, samples: list[Any], moved: dict[str, Any]) -> str:
    """A split of n samples, as builders write it, and predictions for it."""
    lines = [[s.sample_id, list(s.target.size), moved[s.ref_id].counts.decode()] for s in samples]
    name = f"repeated-{n}"
    source, place = split_path("refcoco/val"), dataset_folder("refcoco").parent / name
    table = pq.read_table(source)
    place.mkdir(parents=True)
    with (
        pq.ParquetWriter(place / "val.parquet", table.schema, compression="zstd") as writer,
        predictions.open("w") as file,
    ):
        for copy in range(-(-n // len(table))):
            part = table.slice(0, n - copy * len(table))
            ids = pc.replace_substring(part["sample_id"], "refcoco/", f"{name}/")
            for column, values in (("sample_id", ids), ("image_id", part["image_id"])):
                renamed = pc.binary_join_element_wise(values, pa.scalar(str(copy)), "-").cast(pa.string())
                part = part.set_column(part.schema.get_field_index(column), column, renamed)
            writer.write_table(part.cast(table.schema), row_group_size=ROWS_A_GROUP)
            for sample_id, size, counts in lines[: len(part)]:
                row = {
                    "sample_id": f"{sample_id.replace('refcoco/', f'{name}/')}-{copy}",
                    "size": size,
                    "counts": counts,
                }
                file.write(json.dumps(row) + "\n")
    shutil.copy(source.parent / "objects.parquet", place)
    manifest = json.loads((source.parent / "manifest.json").read_text())
    manifest["dataset"] = name
    manifest["splits"] = {"val": manifest["splits"]["val"]}
    (place / "manifest.json").write_text(json.dumps(manifest))
    read_manifest(name)
    return f"{name}/val"


def _sums_agree(out: Path, n: int, samples: list[Any], moved: dict[str, Any]) -> bool:
    """Whether intersection and union are those of decoded masks, counted by NumPy."""
    counted: dict[str, tuple[int, int]] = {}
    for s in samples:
        if s.ref_id not in counted:
            a, b = (coco_mask.decode(m.to_rle()).astype(bool) for m in (s.target, moved[s.ref_id]))
            counted[s.ref_id] = int((a & b).sum()), int((a | b).sum())
    once = np.array([counted[s.ref_id] for s in samples], np.int64)
    whole, rest = divmod(n, len(once))
    wanted = once.sum(axis=0) * whole + once[:rest].sum(axis=0)
    sums = json.loads((out / "summary.json").read_text())["sums"]
    return bool([sums["intersection"], sums["union"]] == wanted.tolist())
