"""Mutated files for every dataset reader: `python tests/fuzz/fuzz_readers.py COUNT SEED` prints what happened.

Each case damages one file of a miniature (bytes, or values inside its JSON, pickle or Parquet) and builds. It must
end in a built dataset or a DatasetError, quickly and in little memory; anything else is printed with its seed.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import miniatures as mini
import pyarrow as pa
import pyarrow.parquet as pq
import refer_release
from fuzz.mutation import change_bytes, change_values

from refbench.datasets.builders import exported
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.exporters import export
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.storage.files import file_sha256, home
from refbench.storage.progress import silent

MEMORY_LIMIT_BYTES = 6 * 2**30


class Case:
    """A miniature on disk: which file to damage, and how to build it."""

    def __init__(self, name: str, dataset: str, annotations: Path, target: Path, images: Path | None) -> None:
        self.name = name
        self.dataset = dataset
        self.annotations = annotations
        self.target = target
        self.images = images
        self.whole = target.read_bytes()
        self.is_export = name.startswith("export")

    def build(self) -> None:
        builder = exported.build if self.is_export else load("builders", self.dataset)
        build_dataset(self.dataset, builder, Sources(self.annotations, self.images), silent)


def cases(root: Path) -> list[Case]:
    out = []

    def add(name: str, dataset: str, annotations: Path, target: Path, images: Path | None = None) -> None:
        out.append(Case(name, dataset, annotations, target, images))

    refs, instances = refer_release.content()
    release = refer_release.write(root / "refer", refs, instances)
    photographs = root / "refer" / "images"
    add("refs(unc).p", "refcoco", release, release / "refcoco" / "refs(unc).p", photographs)
    add("instances.json", "refcoco", release, release / "refcoco" / "instances.json", photographs)
    tables = mini.write_tables(root / "tables", refs, instances, photographs)
    add("refcoco table", "refcoco", tables, next((tables / "data").glob("*_val-*")))
    grefs = mini.write_grefcoco(root / "g", *mini.grefs())
    add("grefs(unc).json", "grefcoco", grefs, grefs / "grefcoco" / "grefs(unc).json")
    zom = mini.write_refzom(root / "z", *mini.refzom())
    add("Ref_ZOM.p", "refzom", zom, zom / "refzom" / "Ref_ZOM.p")
    lvis = mini.write_lvis(root / "l", mini.lvis())
    add("lvis_v1_val.json", "lvis", lvis, lvis, root / "l" / "images")
    wild = mini.write_sginw(root / "s", mini.sginw())
    add("_annotations_min1cat", "sginw-Fruits", wild, next(wild.rglob("*.coco.json")))
    concepts = mini.write_sa_co(root / "c", mini.sa_co())
    add("gold_crowded_merged_a_release_test.json", "sa-co-gold", concepts, concepts, root / "c" / "images")
    reason = mini.write_reasonseg(root / "r", mini.reasonseg())
    add("reasonseg json", "reasonseg", reason, next((reason / "ReasonSeg" / "val").glob("*.json")))
    add("reasonseg jpg", "reasonseg", reason, next((reason / "ReasonSeg" / "test").glob("*.jpg")))
    with zipfile.ZipFile(root / "train2014.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for image_id in mini.SIZES:
            archive.writestr(f"train2014/{mini.file_name(image_id)}", mini.picture(image_id))
    add("train2014.zip", "grefcoco", grefs, root / "train2014.zip", root / "train2014.zip")
    add("validation table", "refcoco-m", _refcoco_m(root / "m"), root / "m" / "validation-00000-of-00001.parquet")
    build_dataset("grefcoco", load("builders", "grefcoco"), Sources(grefs), silent)
    for form, name in (("jsonl", "samples.jsonl"), ("coco", "testB.json"), ("hf", "testB-00000-of-00001.parquet")):
        place = root / f"export-{form}"
        export("grefcoco/testB", form, place, False, silent)
        add(f"export {name}", "grefcoco", place, next(place.rglob(name)))
    add("export refbench.json", "grefcoco", root / "export-hf", root / "export-hf" / "refbench.json")
    return out


def _refcoco_m(folder: Path) -> Path:
    folder.mkdir()
    code = Mask.from_polygons([refer_release.SQUARE], 60, 80)
    item = {
        "id": 5, "image_id": 1, "category": "thing", "supercategory": "x", "label": "x", "sentences": ["one", "two"],
        "bbox": [10.0, 10.0, 20.0, 20.0], "mask": {"size": [60, 80], "counts": code.counts.decode()},
    }  # fmt: skip
    row = {"image": {"bytes": mini.picture(1), "path": ""}, "image_id": 1, "file_name": "a.jpg", "samples": [item]}
    pq.write_table(pa.Table.from_pylist([row]), folder / "validation-00000-of-00001.parquet")
    return folder


def mutate(case: Case, rng: random.Random) -> bytes:
    """Damaged bytes of the case's file: inside its values half of the time, else raw."""
    if rng.random() < 0.5:
        try:
            changed = _change_values(case, rng)
            if changed is not None:
                return changed
        except (OverflowError, UnicodeEncodeError, ValueError, pa.ArrowException, TypeError, AttributeError):
            pass  # a value that this container cannot even hold
    return change_bytes(case.whole, rng)


def _change_values(case: Case, rng: random.Random) -> bytes | None:
    name = case.target.name
    if name.endswith(".json"):
        tree = json.loads(case.whole)
        change_values(tree, rng)
        return json.dumps(tree).encode()
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in case.whole.decode().splitlines()]
        change_values(rows, rng)
        return "\n".join(json.dumps(r) for r in rows).encode()
    if name.endswith(".p"):
        tree = pickle.loads(case.whole)
        change_values(tree, rng)
        return pickle.dumps(tree, protocol=rng.randrange(5))
    if name.endswith(".parquet"):
        table = pq.read_table(case.target)
        rows = table.to_pylist()
        change_values(rows, rng)
        schema = table.schema if rng.random() < 0.7 else None
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema), sink)
        return sink.getvalue().to_pybytes()
    return None


def _brief(trace: str) -> str:
    """Where it happened and what was said, without the code around."""
    lines = [line.strip()[:160] for line in trace.splitlines() if "refbench/" in line or not line.startswith(" ")]
    return " | ".join(lines[-4:])


def main(count: int, seed: int) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, hard))
    root = Path(tempfile.mkdtemp(prefix="refbench-fuzz-"))
    os.environ["REFBENCH_HOME"] = str(root / "home")
    failures: list[dict[str, Any]] = []
    ended: Counter[str] = Counter()
    slowest = 0.0
    try:
        prepared = cases(root)
        for case in prepared:
            case.build()
        at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for number in range(count):
            case = prepared[number % len(prepared)]
            rng = random.Random(f"{seed}-{number}")
            content = mutate(case, rng)
            case.target.write_bytes(content)
            if case.is_export and case.target.name != "refbench.json":
                # With the right sha256, or the check of the file would end every case.
                about = case.annotations / "refbench.json"
                stated = json.loads(about.read_text())
                stated["files"][case.target.relative_to(case.annotations).as_posix()] = file_sha256(case.target)
                about.write_text(json.dumps(stated))
            began = time.process_time()
            try:
                case.build()
                ended["built"] += 1
            except DatasetError:
                ended["refused"] += 1
            except Exception:  # noqa: BLE001 (whatever comes is what is looked for)
                failures.append({"case": case.name, "number": number, "error": _brief(traceback.format_exc())})
            slowest = max(slowest, time.process_time() - began)
            case.target.write_bytes(case.whole)
            if len(failures) > 20:
                break
        left = [p.name for p in (home() / "datasets").iterdir() if p.name.startswith(".")]
    finally:
        shutil.rmtree(root, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {
        "cases": count, "files": len(prepared), **ended, "failures": failures, "slowest_seconds": round(slowest, 3),
        "grown_megabytes": round(peak - at_start, 1), "left_behind": left,
    }  # fmt: skip
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
