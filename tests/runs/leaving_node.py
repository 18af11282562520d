"""Runs an adapter on a Ray cluster of two nodes, one of which leaves once the first shard is there.

    python leaving_node.py ADAPTER DATASET/SPLIT OUT

prints what the run said, and exits 0 if it was finished. A process of its own: it has one Ray cluster for itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from refbench import run
from refbench.runs.folder import RunFolder

# On a busy machine a node answers late, which is no reason to take it for dead; one that is gone refuses at once.
PATIENT = {
    "health_check_initial_delay_ms": 60_000,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 60_000,
    "health_check_failure_threshold": 15,
    # Ray gives its workers the niceness 15: eight busy processes leave them nothing.
    "worker_niceness": 0,
}


def main(adapter: str, address: str, out: Path) -> None:
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": PATIENT}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    def leave() -> None:
        while not RunFolder(out).written:
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)

    # A daemon: if the run fails before its first shard, this process ends all the same.
    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    options = {"seconds": "0.006"}
    result = run(adapter, address, options=options, engine="ray", workers=2, out=out, log=print)
    leaving.join()
    ray.shutdown()
    cluster.shutdown()
    sys.exit(result.failures)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
