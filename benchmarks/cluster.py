"""Ray on a cluster of three nodes at 10^6 samples: what it costs for each, while objects are spilled and a node leaves.

The adapter costs nothing, so that all that is measured is refbench and Ray. All nodes are processes of this machine.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from benchmarks.data import moved_targets, temporary_home, test_data
from benchmarks.scale import repeated_split
from refbench.datasets.builders import refer
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.runs.folder import RunFolder
from refbench.runs.runner import run
from refbench.storage.files import file_sha256
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples

SAMPLES = 1_000_000
NODES = 3
# The least that Ray accepts. More than it holds is put into it, so that Ray spills it to the disk.
STORE_BYTES = 80_000_000
PUT_BYTES = 30_000_000
LONG_HEALTH_CHECKS = {"health_check_initial_delay_ms": 60_000, "health_check_timeout_ms": 60_000}


def measure() -> dict[str, Any]:
    """Microseconds a sample in this process and on the cluster, and whether the predictions are the same bytes."""
    with temporary_home() as folder:
        build_dataset("refcoco", refer.build, Sources(test_data() / "whole-splits" / "refer"), silent)
        samples = load_samples("refcoco/val")
        address = repeated_split(SAMPLES, folder / "predictions.jsonl", samples, moved_targets(samples))
        return measure_on(address, folder)


def measure_on(address: str, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    alone = run("nothing", address, out=folder / "alone")
    alone_s = time.perf_counter() - began
    cluster = Cluster()
    try:
        one = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        cluster.add_node(include_dashboard=False, _system_config=LONG_HEALTH_CHECKS, **one)
        nodes = [cluster.add_node(**one) for _ in range(NODES - 1)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        put = [ray.put(np.full(PUT_BYTES, k, np.uint8)) for k in range(2 * STORE_BYTES // PUT_BYTES)]
        shards = len(RunFolder(alone.folder).shards)
        seen: list[float] = []

        def progress(task: str, done: int, total: int) -> None:
            if done and not seen:
                seen.append(time.perf_counter())

        def leave() -> None:
            while len(RunFolder(folder / "cluster").written) < shards // 2:
                time.sleep(0.1)
            cluster.remove_node(nodes[-1], allow_graceful=False)

        leaving = threading.Thread(target=leave, daemon=True)
        leaving.start()
        said: list[str] = []
        began = time.perf_counter()
        found = run(
            "nothing", address, engine="ray", workers=NODES, out=folder / "cluster", log=said.append, progress=progress
        )
        cluster_s = time.perf_counter() - began
        leaving.join()
        spilled = all((ray.get(one) == k).all() for k, one in enumerate(put))
    finally:
        ray.shutdown()
        cluster.shutdown()
    ours, theirs = ([file_sha256(p) for p in RunFolder(f).shards] for f in (alone.folder, found.folder))
    return {
        "samples": found.samples,
        "shards": shards,
        "in this process, s": alone_s,
        "in this process, us a sample": 1e6 * alone.seconds / alone.samples,
        f"Ray, {NODES} nodes, one of which leaves, s": cluster_s,
        "Ray, from the call to the first shard, s": seen[0] - began,
        "Ray, us a sample": 1e6 * found.seconds / found.samples,
        "the node was missed": any("left" in line or "died" in line for line in said),
        "spilled objects are intact": spilled,
        "the bytes of all shards are the same": ours == theirs,
    }
