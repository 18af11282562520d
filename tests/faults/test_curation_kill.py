"""Curation killed at random moments: the same files in the end, and every answer that was acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import SMALL_IMAGES

from refbench.curation.reviews import REVIEW_FILE, Reviews

KILLS = 20

ANSWERING = """
import sys
from pathlib import Path
from refbench.curation.reviews import Answer, Reviews
reviews = Reviews(Path(sys.argv[1]))
for k in range(10_000):
    key = f"{sys.argv[2]}-{k}"
    reviews.add(Answer(key, "mask", f"item{k % 7}", sys.argv[2], "keep", str(k)))
    print(key, flush=True)
"""


def killed(command: list[str], seconds: float) -> str:
    """Run a command in a group of its own, kill all of it; what it had printed."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    return printed


def test_proposals_survive_twenty_kills(curation: Path) -> None:
    expected = {p: p.read_bytes() for p in (curation / "proposals").rglob("*") if p.is_file()}
    for path in expected:
        if path.suffix == ".parquet":
            path.unlink()
    shards = [p for p in expected if p.suffix == ".parquet"]
    command = [
        sys.executable,
        "-m",
        "refbench",
        "curate",
        "propose",
        str(curation),
        "--limit",
        str(SMALL_IMAGES),
        "--workers",
        "1",
    ]
    dice = random.Random(11)
    for _ in range(KILLS):
        killed(command, dice.uniform(0.4, 2.4))
        # What is there is whole.
        assert all(p.read_bytes() == expected[p] for p in shards if p.exists())
        if all(p.exists() for p in shards):
            dice.choice(shards).unlink()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert {p: p.read_bytes() for p in (curation / "proposals").rglob("*") if p.is_file()} == expected


def test_acknowledged_answers_survive_twenty_kills(tmp_path: Path) -> None:
    path = tmp_path / REVIEW_FILE
    dice = random.Random(12)
    acknowledged: dict[str, int] = {}
    for k in range(KILLS):
        name = f"r{k}"
        lines = killed([sys.executable, "-c", ANSWERING, str(path), name], dice.uniform(0.9, 1.6)).splitlines()
        acknowledged[name] = len(lines)
    standing = Reviews(path).standing()
    found = {a.reviewer: 0 for answers in standing.values() for a in answers}
    for answers in standing.values():
        for a in answers:
            found[a.reviewer] = max(found[a.reviewer], int(a.time) + 1)
    assert sum(acknowledged.values()) > 100
    assert all(found.get(name, 0) >= count for name, count in acknowledged.items())
