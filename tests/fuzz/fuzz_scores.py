"""Mutated annotation files and results: `python tests/fuzz/fuzz_scores.py COUNT SEED` prints what happened.

Each case damages one of the files (bytes, or values inside the JSON) and scores through the command line. It must end
in the figures of a restated rule, or in exit code 3 and one message that names the damaged file.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from detection_files import detection_files
from detection_reference import coco_ap, federated_ap, sa_co
from fuzz.mutation import change_bytes, change_values

from refbench.cli.main import main as refbench

Rule = Callable[[list[Any], list[Any]], dict[str, float]]
RULES: dict[str, tuple[int, Rule]] = {
    "coco-ap": (1, lambda truths, rows: coco_ap(truths[0], rows)),
    "lvis-ap": (1, lambda truths, rows: {k: 100 * v for k, v in federated_ap(truths[0], rows).items()}),
    "sa-co": (2, sa_co),
}


def damaged(whole: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.15:
        return change_bytes(whole, rng)
    tree = json.loads(whole)
    if rng.random() < 0.4:
        _change_rows(tree, rng)
    else:
        change_values(tree, rng)
    try:
        return json.dumps(tree).encode()
    except (ValueError, RecursionError):
        return whole


def _change_rows(tree: Any, rng: random.Random) -> None:
    """Drop, repeat or move whole rows, or change a number that may have any value: mostly files that can be scored."""
    part = rng.choice(("images", "annotations", "annotations", "categories")) if isinstance(tree, dict) else ""
    rows = tree[part] if part else tree
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(rows)) if rows else 0
        kind = rng.randrange(5)
        if not rows:
            break
        if kind == 0 and part in ("", "annotations"):
            del rows[at]
        elif kind == 1:
            repeated = dict(rows[at])
            if part:
                repeated["id"] = len(rows) + 100
            rows.append(repeated)
        elif kind == 2:
            rng.shuffle(rows)
        elif kind == 3:
            numbers = [k for k, v in rows[at].items() if isinstance(v, (int, float))]
            rows[at][rng.choice(numbers or ["score"])] = rng.choice((0, 1, 1.0, 2, 50, 1e4, 0.5))
        else:
            rows[at][rng.choice(("bbox", "caption", "keypoints", "ignore", "id", "info"))] = rng.choice(
                ([], [0, 0, 9, 9], 0, None, "x", 1.0)
            )


def case(folder: Path, rng: random.Random) -> tuple[str, str]:
    """How one case ended ("scored" or "refused"), and what is wrong with that, if anything."""
    name = rng.choice(("coco-ap", "coco-ap", "lvis-ap", "sa-co"))
    annotators, rule = RULES[name]
    truths, rows = detection_files(rng.randrange(40), annotators)
    paths = [folder / f"truth{k}.json" for k in range(annotators)] + [folder / "results.json"]
    for path, content in zip(paths, (*truths, rows), strict=True):
        path.write_text(json.dumps(content))
    at = rng.randrange(len(paths))
    paths[at].write_bytes(damaged(paths[at].read_bytes(), rng))
    arguments = ["score", str(paths[-1]), "--protocol", name, "--json"]
    for path in paths[:-1]:
        arguments += ["--ground-truth", str(path)]
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            refbench(arguments)
        except SystemExit as ended:
            code = ended.code
    said = err.getvalue()
    if code == 3:
        one_message = said.count("error: ") == 1 and "Traceback" not in said
        return "refused", "" if one_message and paths[at].name in said else f"{name}: {said[-500:]}"
    if code != 0:
        return "crashed", f"{name}: exit code {code}: {said[-800:]}"
    found = json.loads(out.getvalue())["protocols"][name]["metrics"]
    read = [json.loads(path.read_bytes().decode("utf-8-sig")) for path in paths]
    expected = rule(read[:-1], read[-1])
    different = {
        metric: (found.get(metric), value) for metric, value in expected.items() if not _same(found.get(metric), value)
    }
    return "scored", f"{name}: {different}" if different else ""


def _same(found: float | None, expected: float) -> bool:
    return math.isnan(expected) if found is None else abs(found - expected) < 1e-6


def main(count: int, seed: int) -> int:
    folder = Path(tempfile.mkdtemp(prefix="refbench-fuzz-"))
    failures: list[dict[str, Any]] = []
    ended: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    try:
        for number in range(count):
            end, wrong = case(folder, random.Random(f"{seed}-{number}"))
            ended[end] += 1
            if wrong:
                failures.append({"number": number, "end": end, "what": wrong})
                reasons[re.sub(r"[\d.]+", "0", wrong)[:60]] += 1
            if len(failures) > 20:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = {"cases": count, **ended, "failures": failures, "kinds": reasons.most_common(10)}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
