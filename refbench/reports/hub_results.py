"""Results in the formats of the Hugging Face Hub: `.eval_results/*.yaml`, `model-index` and `eval.yaml`.

Sources: https://huggingface.co/docs/hub/eval-results for the first and the last, and
https://huggingface.co/docs/hub/model-cards for `model-index`. A task of the Hub has one number, so each metric is a
task of its own: `<split>-<protocol>-<metric>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from refbench._version import __version__
from refbench.errors import DatasetError, RefbenchError, RunError
from refbench.plugins.loading import load
from refbench.records import Summary
from refbench.reports.names import system_name
from refbench.scoring.protocols.exact import REFBENCH
from refbench.scoring.results import Result, read_result
from refbench.storage.files import atomic_file
from refbench.storage.manifest import parse_address

RESULTS_FOLDER, CARD_FILE, BENCHMARK_FILE = ".eval_results", "model-index.yaml", "eval.yaml"
TASK_TYPE = "image-segmentation"
SHOWN = ("cumulative_iou", "mean_iou", "mean_boundary_iou")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def task_id(split: str, protocol: str, metric: str) -> str:
    """The id of a task on the Hub: letters, digits and `_.-`.

    Example:
        >>> task_id("testA", "lavt-480", "overall IoU")
        'testA-lavt-480-overall_IoU'
    """
    return re.sub(r"[^\w.-]+", "_", f"{split}-{protocol}-{metric}")


def export_results(folder: Path, out: Path, hub_dataset: str, *, source_url: str = "") -> list[Path]:
    """Write the results of a scored run for the repository of its model; returns the files.

    Args:
        folder: a scored folder.
        out: folder for `.eval_results/<dataset>-<split>.yaml` and `model-index.yaml`, which is metadata for the model
            card.
        hub_dataset: the dataset on the Hub, for example "moondream/refcoco-m".
        source_url: address of the run or of its predictions.

    Raises:
        RunError: the folder is not scored.
        DatasetError: `hub_dataset` is not a name of the Hub.
    """
    if not HUB_NAME.fullmatch(hub_dataset):
        raise DatasetError(f"{hub_dataset!r} is not a name of the Hub; write OWNER/NAME")
    result = read_result(folder)
    if not result.summaries:
        raise RunError(f"{folder} has no scores; run `refbench score {folder}` first")
    if result.run is not None and result.run.limit is not None:
        raise RunError(f"{folder} is a run on the first {result.run.limit} samples only; run the whole split")
    dataset, split = parse_address(result.address)
    results = out / RESULTS_FOLDER / f"{dataset}-{split}.yaml"
    entries = eval_results(result, hub_dataset, source_url)
    index = model_index(result, folder, hub_dataset)
    return [_write(results, entries), _write(out / CARD_FILE, {"model-index": index})]


def _figures(summaries: Mapping[str, Summary]) -> list[tuple[str, str, Any]]:
    """(protocol, metric, estimate): the main metrics of `refbench`, and the headline of every other protocol."""
    out = []
    for name, summary in summaries.items():
        shown = SHOWN if name == REFBENCH.name else (headline_of(name),)
        out += [(name, m, summary.metrics[m]) for m in shown if m in summary.metrics]
    return out


def headline_of(protocol: str) -> str:
    """The metric of a protocol that papers quote; "" if the protocol is not installed here."""
    try:
        return str(load("protocols", protocol).headline)
    except (RefbenchError, AttributeError):
        return ""


def eval_results(result: Result, hub_dataset: str, source_url: str = "") -> list[dict[str, Any]]:
    """The entries of a file in `.eval_results/`, one for each metric."""
    _, split = parse_address(result.address)
    entries = []
    for protocol, metric, e in _figures(result.summaries):
        entry: dict[str, Any] = {
            "dataset": {"id": hub_dataset, "task_id": task_id(split, protocol, metric)},
            "value": round(e.value, 4),
            "notes": f"protocol {protocol}, {metric}, 95 % interval {e.low:.2f} to {e.high:.2f}, {result.samples} "
            f"samples, {result.failures} failed, refbench {__version__}, dataset {result.fingerprint[:12]}",
        }
        if source_url:
            entry["source"] = {"url": source_url, "name": "predictions"}
        entries.append(entry)
    return entries


def model_index(result: Result, folder: Path, hub_dataset: str) -> list[dict[str, Any]]:
    """The results as `model-index`, the older metadata of a model card."""
    dataset, split = parse_address(result.address)
    metrics = [
        {"type": task_id(split, protocol, metric), "name": f"{metric} ({protocol})", "value": round(e.value, 4)}
        for protocol, metric, e in _figures(result.summaries)
    ]
    about = {
        "task": {"type": TASK_TYPE, "name": "Referring image segmentation"},
        "dataset": {"type": hub_dataset, "name": dataset, "split": split},
        "metrics": metrics,
    }
    return [{"name": system_name(result.run) if result.run else folder.name, "results": [about]}]


def benchmark(name: str, description: str, splits: Sequence[str], config: str = "default") -> dict[str, Any]:
    """The content of `eval.yaml`, which registers a dataset of the Hub as a benchmark."""
    return {
        "name": name,
        "description": description,
        "evaluation_framework": "refbench",
        "tasks": [
            {"id": task_id(split, REFBENCH.name, metric), "config": config, "split": split}
            for split in splits
            for metric in SHOWN
        ],
    }


def write_benchmark(folder: Path, name: str, description: str, splits: Sequence[str]) -> Path:
    """Write `eval.yaml` to the folder of an exported dataset."""
    return _write(folder / BENCHMARK_FILE, benchmark(name, description, splits))


def _write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
