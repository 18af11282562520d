"""Attacks that can run for long: `python tests/attacks/campaign.py --seconds 600` prints what happened.

Each campaign draws its cases from a seed and counts them by how they ended. A case that ended in any other way than the
contract allows is printed with its seed, so that it can be repeated. The campaigns: mutated run-length codes, mutated
files for every reader and for every command that reads them, processes killed at random moments, two of the same
command at once, and a disk that is full.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from events import cpu_seconds, kill, wait_until
from fuzz.mutation import change_bytes, change_values
from PIL import Image

from refbench import Mask, run, score
from refbench.cli.main import _run
from refbench.curation.findings import audit
from refbench.curation.ledger import read_ledger
from refbench.curation.recipe import parse_recipe, read_recipe
from refbench.curation.review.answers import REVIEW_FILE, Answer, Reviews
from refbench.curation.tables import read_decisions, read_findings
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import MaskError, RefbenchError
from refbench.plugins.loading import load
from refbench.runs.folder import RunFolder
from refbench.scoring.counts import read_scores
from refbench.scoring.results import read_result
from refbench.storage.files import home
from refbench.storage.images import PHOTO_FORMATS, load_image
from refbench.storage.manifest import read_manifest
from refbench.storage.predictions import Claims, SampleIndex
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples

SPLIT = "snapshots/test"
# A case may take this long; a longer one hangs.
LONGEST_SECONDS = 60
# Exit codes that the help text promises.
ALLOWED = {0, 1, 2, 3, 4}
RECIPE = '[[refiners]]\nname = "watershed"\n[audit]\nreview = ["mask-tiny"]\ndrop = []\n'


class Tally:
    """How the cases of a campaign ended; a bad end is printed with its seed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ends: Counter[str] = Counter()
        self.bad = 0

    def note(self, end: str) -> None:
        self.ends[end] += 1

    def fail(self, seed: object, what: str) -> None:
        self.bad += 1
        print(f"{self.name}, seed {seed}: {what}", flush=True)

    def __str__(self) -> str:
        ends = ", ".join(f"{count:,} {end}" for end, count in sorted(self.ends.items()))
        return f"{self.name}: {sum(self.ends.values()):,} cases, {self.bad} bad ({ends})"


def until(seconds: float, least: int) -> Iterator[int]:
    """Seeds, until the time is over and at least so many were drawn."""
    deadline = time.monotonic() + seconds
    seed = 0
    while seed < least or time.monotonic() < deadline:
        yield seed
        seed += 1


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """An alarm ends a case that hangs."""

    def hang(number: int, frame: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def codes(seconds: float, least: int, start: int) -> Tally:
    """Mutated run-length codes: a mask whose pixels are as many as its code says, or a MaskError."""
    tally = Tally("mutated run-length codes")
    pool = [
        bytes(Mask.from_array(np.random.default_rng(k).random((12, 17)) < 0.1 * (k % 10)).counts) for k in range(99)
    ]
    for block in until(seconds, -(-least // 1000)):
        rng = random.Random(start + block)
        for k in range(1000):
            counts = bytearray(rng.choice(pool))
            for _ in range(rng.randrange(1, 5)):
                counts[rng.randrange(len(counts))] = rng.randrange(256)
            size = rng.choice(([12, 17], [17, 12], [1, 204], [65535, 65535], [0, 5]))
            try:
                mask = Mask.from_rle({"size": size, "counts": bytes(counts)})
                if not 0 <= mask.area <= size[0] * size[1]:
                    tally.fail((block, k), f"area {mask.area} of {size}")
                tally.note("masks")
            except MaskError:
                tally.note("errors")
            except BaseException:  # noqa: BLE001 (whatever it is, it is a finding)
                tally.fail((block, k), traceback.format_exc(limit=3))
    return tally


def files(seconds: float, least: int, start: int, place: Path) -> Tally:
    """Mutated files: every command ends with one of its exit codes, without a traceback, and changes nothing else."""
    tally = Tally("mutated files")
    whole = place / "whole"
    if not whole.exists():
        _prepare(whole)
    targets = [p for p in sorted(whole.rglob("*")) if p.is_file() and p.stat().st_size < 2**21]
    os.environ["REFBENCH_HOME"] = str(place / "now")
    for seed in until(seconds, least):
        rng = random.Random(start + seed)
        now = place / "now"
        target = rng.choice(targets)
        copy = now / target.relative_to(whole)
        if not now.exists():
            shutil.copytree(whole, now)
        copy.write_bytes(_mutated(target, rng))
        try:
            with limited():
                _read_everything(now, copy, rng, tally, start + seed)
        except BaseException:  # noqa: BLE001 (as above)
            tally.fail(start + seed, f"{copy.name}: {traceback.format_exc(limit=4)}")
        if now.exists():
            copy.write_bytes(target.read_bytes())
        for made in ("out", "runs/x/report.html", "runs/x/errors.parquet"):
            shutil.rmtree(now / made, ignore_errors=True)
            (now / made).unlink(missing_ok=True)
    return tally


def readers(seconds: float, least: int, start: int, place: Path) -> Tally:
    """Mutated files for the functions that read them: a value or a RefbenchError, without the start of a command."""
    tally = Tally("mutated files, for their readers")
    whole = place / "whole"
    if not whole.exists():
        _prepare(whole)
    os.environ["REFBENCH_HOME"] = str(whole)
    targets = [(path, path.read_bytes(), read) for path, read in _read_by(whole)]
    for seed in until(seconds, least):
        rng = random.Random(start + seed)
        path, before, read = rng.choice(targets)
        path.write_bytes(_mutated(path, rng))
        try:
            with limited():
                read()
            tally.note("read")
        except RefbenchError:
            tally.note("refused")
        except BaseException:  # noqa: BLE001 (as above)
            tally.fail(start + seed, f"{path.name}: {traceback.format_exc(limit=4)}")
        path.write_bytes(before)
    return tally


def _read_by(whole: Path) -> list[tuple[Path, Callable[[], object]]]:
    """The files of a home, each with what reads it; and images in every format that is read."""
    run_folder, curation = whole / "runs" / "x", whole / "curation"
    index = SampleIndex.of(load_samples(SPLIT))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    photographs = [whole / f"photo-{kind}" for kind in PHOTO_FORMATS]
    for kind, path in zip(PHOTO_FORMATS, photographs, strict=True):
        Image.fromarray(pixels).save(path, kind)
    masks = whole / "masks"
    masks.mkdir(exist_ok=True)
    first = load_samples(SPLIT)[0]
    drawn = masks / f"{first.sample_id.replace('/', '__')}.png"
    Image.fromarray(first.target.to_array().astype(np.uint8) * 255).save(drawn)
    split = next((whole / "datasets").rglob("test.parquet"))
    return [
        (whole / "predictions.jsonl", lambda: list(Claims(whole / "predictions.jsonl", index))),
        (whole / "results.json", lambda: list(Claims(whole / "results.json", index))),
        (drawn, lambda: list(Claims(masks, index))),
        (run_folder / "run.json", lambda: RunFolder(run_folder).check_complete()),
        (RunFolder(run_folder).shard_path(0), lambda: list(RunFolder(run_folder).claims(index))),
        (run_folder / "summary.json", lambda: read_result(run_folder)),
        (run_folder / "scores.parquet", lambda: read_scores(run_folder / "scores.parquet")),
        (curation / "ledger.parquet", lambda: read_ledger(curation / "ledger.parquet")),
        (curation / "findings.parquet", lambda: read_findings(curation)),
        (curation / "decisions.parquet", lambda: read_decisions(curation)),
        (curation / REVIEW_FILE, lambda: Reviews(curation / REVIEW_FILE, new=False).standing()),
        (whole / "recipe.toml", lambda: read_recipe(whole / "recipe.toml")),
        (split.parent / "manifest.json", lambda: read_manifest("snapshots")),
        (split, lambda: load_samples(SPLIT)),
        *((path, lambda path=path: load_image(path, 40, 60)) for path in photographs),
    ]  # fmt: skip


def _prepare(whole: Path) -> None:
    """A home with a dataset, a scored run, predictions files, and a curation with answers and a ledger."""
    os.environ["REFBENCH_HOME"] = str(whole)
    build_dataset("snapshots", load("builders", "snapshots"), Sources(), silent)
    scored = score(run("noisy-oracle", SPLIT, out=whole / "runs" / "x").folder, protocols=["refbench", "cris"])
    ids = scored.scores.sample_ids()
    lines = [{"sample_id": s, "size": [1, 1], "counts": "1"} for s in ids[:3]]
    (whole / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (whole / "results.json").write_text(
        json.dumps([{"image_id": s, "segmentation": [[0, 0, 9, 0, 9, 9]]} for s in ids])
    )
    (whole / "recipe.toml").write_text(RECIPE)
    folder = whole / "curation"
    found = audit(SPLIT, parse_recipe(RECIPE, "r"), out=folder, workers=1)
    item = found.findings[0].item_id if found.findings else "x"
    assert _quiet(["curate", "propose", str(folder), "--workers", "1"])[0] == 0
    Reviews(folder / REVIEW_FILE).add(Answer("k", "mask", item, "anna", "drop", "2026-01-01T00:00:00+00:00"))
    Reviews(folder / REVIEW_FILE).undo("anna", "2026-01-01T00:00:01+00:00")
    assert _quiet(["curate", "decide", str(folder)])[0] == 0


def _mutated(path: Path, rng: random.Random) -> bytes:
    """The file with damaged bytes or, if it is JSON or Parquet, with damaged values."""
    content = path.read_bytes()
    try:
        if path.suffix == ".json" and rng.random() < 0.7:
            tree = [json.loads(content)]
            change_values(tree, rng)
            return json.dumps(tree[0] if tree else None).encode("utf-8", "surrogatepass")
        if path.suffix == ".parquet" and rng.random() < 0.7:
            table = pq.read_table(path)
            rows = [table.to_pydict()]
            change_values(rows, rng)
            sink = io.BytesIO()
            columns = rows[0]
            # Columns keep their types where the values still fit.
            arrays = {
                n: _array(v, table.schema.field(n).type if n in table.schema.names else None)
                for n, v in columns.items()
            }
            pq.write_table(pa.table(arrays, metadata=table.schema.metadata), sink)
            return sink.getvalue()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, pa.ArrowException):
        return change_bytes(content, rng)
    return change_bytes(content, rng)


def _array(values: Any, kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array(values)


def _read_everything(now: Path, copy: Path, rng: random.Random, tally: Tally, seed: int) -> None:
    run_folder, curation = str(now / "runs" / "x"), str(now / "curation")
    commands: dict[str, list[list[str]]] = {
        "runs": [
            ["score", run_folder], ["report", run_folder], ["diagnose", run_folder],
            ["compare", run_folder, run_folder],
            ["gate", run_folder, "--baseline", run_folder], ["leaderboard", "verify", str(now / "runs")],
            ["run", "noisy-oracle", SPLIT, "--out", run_folder],
        ],
        "datasets": [
            ["score", run_folder], ["verify", "snapshots"], ["list", "datasets"], ["overlap", SPLIT, SPLIT],
            ["export", SPLIT, "--out", str(now / "out"), "--format", "jsonl"], ["curate", "decide", curation],
            ["run", "center", SPLIT, "--out", str(now / "out")], ["diagnose", run_folder],
        ],
        "curation": [
            ["curate", "decide", curation], ["curate", "why", curation, "x"], ["curate", "reviewers", curation],
            ["curate", "apply", SPLIT, f"{curation}/ledger.parquet", "--as", "applied"],
        ],
        "predictions.jsonl": [["score", str(copy), "--dataset", SPLIT]],
        "results.json": [["score", str(copy), "--dataset", SPLIT]],
        "recipe.toml": [["curate", "audit", SPLIT, "--recipe", str(copy), "--out", str(now / "out"), "--workers", "1"]],
    }  # fmt: skip
    words = rng.choice(commands[copy.relative_to(now).parts[0]])
    code, said = _quiet(words)
    shutil.rmtree(now / "datasets" / "applied", ignore_errors=True)
    if code not in ALLOWED or "Traceback" in said:
        tally.fail(seed, f"{' '.join(words)} with another {copy.relative_to(now)} ended with {code}: {said[-800:]}")
    tally.note(f"ended with {code}")
    if words[0] == "run" or words[0] == "score":
        # They may have written; the next case begins with the whole folder.
        shutil.rmtree(now)


def _quiet(words: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _run(words)
    return code, err.getvalue()


class Verb:
    """A command that writes: how to call it, what it writes, and how to take that away again."""

    def __init__(self, name: str, words: list[str], output: Path, *, keep: tuple[str, ...] = ()) -> None:
        self.name, self.words, self.output, self.keep = name, words, output, keep

    def start(self, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "refbench", *self.words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True, **more,
        )  # fmt: skip

    def bytes(self) -> dict[str, bytes]:
        """What it has written, without the files that state a time."""
        found = {}
        for path in sorted(self.output.rglob("*")) if self.output.is_dir() else [self.output]:
            timed = ("run.json", "timings.parquet", "manifest.json")
            if path.is_file() and path.name not in timed and path.name not in self.keep:
                found[str(path.relative_to(self.output.parent))] = path.read_bytes()
        return found

    def clear(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)


def verbs(place: Path) -> list[Verb]:
    """The commands that write, each with what it needs prepared."""
    whole = place / "whole"
    if not whole.exists():
        _prepare(whole)
    base = place / "verbs"
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(whole, base)
    os.environ["REFBENCH_HOME"] = str(base)
    runs, curation = base / "made", base / "curation"
    oracle, recipe = "noisy-oracle", ("--recipe", str(base / "recipe.toml"))
    ledger = (str(curation / "ledger.parquet"), "--as", "applied")
    return [
        Verb("run, 1 worker", ["run", oracle, SPLIT, "--out", str(runs / "one")], runs / "one"),
        Verb("run, 2 workers", ["run", oracle, SPLIT, "--workers", "2", "--out", str(runs / "two")], runs / "two"),
        Verb("score", ["score", str(base / "runs" / "x"), "--out", str(runs / "scores")], runs / "scores"),
        Verb("build", ["build", "snapshots"], base / "datasets" / "snapshots"),
        Verb("audit", ["curate", "audit", SPLIT, "--out", str(runs / "audit"), *recipe], runs / "audit"),
        Verb("propose", ["curate", "propose", str(curation), "--workers", "2"], curation / "proposals"),
        Verb("decide", ["curate", "decide", str(curation)], curation / "ledger.parquet"),
        Verb("apply", ["curate", "apply", SPLIT, *ledger, "--replace"], base / "datasets" / "applied"),
    ]  # fmt: skip


def _finished(verb: Verb, tally: Tally, seed: object, expected: dict[str, bytes]) -> None:
    """The command must end well now, with the bytes of an undisturbed call and without left-overs."""
    process = verb.start()
    _, said = process.communicate()
    if process.returncode:
        tally.fail(seed, f"{verb.name} ended with {process.returncode}: {said[-600:]}")
    elif verb.bytes() != expected:
        other = sorted(k for k in {*expected, *verb.bytes()} if expected.get(k) != verb.bytes().get(k))
        tally.fail(seed, f"{verb.name}: other bytes or files: {other[:5]}")
    left = [p for p in home().rglob(".*") if p.name.endswith(".tmp") or p.name in (".lock", ".staging")]
    if left:
        tally.fail(seed, f"{verb.name} left {left[:3]}")


def _expected(verb: Verb) -> tuple[dict[str, bytes], float]:
    """The bytes of an undisturbed call, and what it computed, in seconds."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = verb.start()
    _, said = process.communicate()
    assert process.returncode == 0, said
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return verb.bytes(), ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def _drawn(
    seconds: float, least: int, start: int, place: Path
) -> Iterator[tuple[int, random.Random, Verb, dict[str, bytes], float]]:
    """A command for each seed, with the bytes of an undisturbed call and what that call computed, in seconds.

    What the command has written is taken away, unless the next command needs it.
    """
    chosen = verbs(place)
    known: dict[str, tuple[dict[str, bytes], float]] = {}
    for number in until(seconds, least):
        seed = start + number
        rng = random.Random(seed)
        verb = rng.choice(chosen)
        if verb.name not in known:
            known[verb.name] = _expected(verb)
        if verb.name not in ("build", "decide", "propose"):
            verb.clear()
        yield seed, rng, verb, *known[verb.name]


def kills(seconds: float, least: int, start: int, place: Path) -> Tally:
    """Every command that writes, killed at a random moment; the next call gives the bytes of an undisturbed one."""
    tally = Tally("kills")
    for seed, rng, verb, expected, whole in _drawn(seconds, least, start, place):
        process = verb.start()
        moment = rng.uniform(0, 1.1 * whole)
        wait_until(lambda moment=moment, process=process: cpu_seconds(process) >= moment, process)
        tally.note("killed" if kill(process) else "ended before")
        if process.stderr is not None:
            process.stderr.close()
        _finished(verb, tally, seed, expected)
    return tally


def pairs(seconds: float, least: int, start: int, place: Path) -> Tally:
    """Two of the same command at once: both end well, or one is told that the other one is at work."""
    tally = Tally("two at once")
    for seed, _, verb, expected, _ in _drawn(seconds, least, start, place):
        both = [verb.start(), verb.start()]
        said = [p.communicate()[1] for p in both]
        ended = sorted(p.returncode for p in both)
        told = [text for p, text in zip(both, said, strict=True) if p.returncode == 3]
        if ended not in ([0, 0], [0, 3]) or not all("is in use by process" in text for text in told):
            tally.fail(seed, f"{verb.name}: {ended}, {[t[-400:] for t in said]}")
        tally.note("both ended well" if ended == [0, 0] else "one was told")
        _finished(verb, tally, seed, expected)
    return tally


def full_disks(seconds: float, least: int, start: int, place: Path) -> Tally:
    """No file can grow beyond a random size: the command says so, and the next call gives the right bytes."""
    tally = Tally("full disks")
    for seed, rng, verb, expected, _ in _drawn(seconds, least, start, place):
        largest = max(map(len, expected.values()))
        room = rng.randrange(largest + 1)
        process = verb.start(preexec_fn=lambda room=room: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
        _, said = process.communicate()
        if process.returncode not in (0, 3) or "Traceback" in said:
            tally.fail(seed, f"{verb.name} with files of at most {room} bytes: {process.returncode}, {said[-600:]}")
        tally.note(f"ended with {process.returncode}")
        _finished(verb, tally, seed, expected)
    return tally


CAMPAIGNS: dict[str, Callable[[float, int, int, Path], Tally]] = {
    "codes": lambda seconds, least, start, place: codes(seconds, least, start),
    "readers": readers,
    "files": files,
    "kills": kills,
    "pairs": pairs,
    "disks": full_disks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="in all; every campaign gets the same share")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=CAMPAIGNS, action="append", help="one campaign; repeatable")
    parser.add_argument("--least", type=int, default=10, help="at least so many cases, however long they take")
    given = parser.parse_args()
    chosen = given.only or list(CAMPAIGNS)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            tally = CAMPAIGNS[name](given.seconds / len(chosen), given.least, given.seed, Path(folder))
            print(tally, flush=True)
            bad += tally.bad
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
