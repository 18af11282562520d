"""Curation killed at random moments: the same files in the end, and every answer that was acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import SMALL_IMAGES
from events import cpu_seconds, kill, wait_until

from refbench.curation.review.answers import REVIEW_FILE, Reviews

pytestmark = pytest.mark.slow  # kills

# More of them on request: REFBENCH_KILLS=200.
KILLS = int(os.environ.get("REFBENCH_KILLS", "20"))

ANSWERING = """
import sys
from pathlib import Path
from refbench.curation.review.answers import Answer, Reviews
reviews = Reviews(Path(sys.argv[1]))
for k in range(10_000):
    key = f"{sys.argv[2]}-{k}"
    reviews.add(Answer(key, "mask", f"item{k % 7}", sys.argv[2], "keep", str(k)))
    print(key, flush=True)
"""


def test_proposals_survive_kills(curation: Path) -> None:
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
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        computed = dice.uniform(0.4, 6.0)
        wait_until(lambda computed=computed, process=process: cpu_seconds(process) >= computed, process)
        kills += kill(process)
        # What is there is whole.
        assert all(p.read_bytes() == expected[p] for p in shards if p.exists())
        if all(p.exists() for p in shards):
            dice.choice(shards).unlink()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert {p: p.read_bytes() for p in (curation / "proposals").rglob("*") if p.is_file()} == expected


def test_acknowledged_answers_survive_kills(tmp_path: Path) -> None:
    path = tmp_path / REVIEW_FILE
    dice = random.Random(12)
    acknowledged: Counter[str] = Counter()
    for k in range(KILLS):
        name = f"r{k}"
        process = subprocess.Popen(
            [sys.executable, "-c", ANSWERING, str(path), name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip
        for _ in range(dice.randrange(1, 60)):
            assert process.stdout is not None
            assert process.stdout.readline()
            acknowledged[name] += 1
        assert kill(process)
        # What it said before the signal came was acknowledged too.
        acknowledged[name] += len(process.stdout.read().splitlines())
    standing = Reviews(path).standing()
    found = {a.reviewer: 0 for answers in standing.values() for a in answers}
    for answers in standing.values():
        for a in answers:
            found[a.reviewer] = max(found[a.reviewer], int(a.time) + 1)
    assert sum(acknowledged.values()) > 100
    assert all(found.get(name, 0) >= count for name, count in acknowledged.items())
