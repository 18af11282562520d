"""The run: batches, failures, memory, resuming, and folders that are not its own."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapters.exact_adapters import Misbehaving, Threshold

from refbench import load_samples, run, score
from refbench.adapters.baselines import Nothing
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.builders.refer import build as build_refer
from refbench.errors import AdapterError, DatasetError, RunError, TooManyFailures
from refbench.masks.mask import Mask
from refbench.records import Question, Sample
from refbench.runs import runner
from refbench.runs.folder import RunFolder
from refbench.runs.plan import plan_shards
from refbench.runs.runner import default_folder
from refbench.runs.shard import CLOSE_SECONDS
from refbench.runs.timings import ShardTiming
from refbench.storage import manifest
from refbench.storage.files import read_table
from refbench.storage.predictions import predictions_from_table
from refbench.storage.progress import silent

Cli = Callable[..., subprocess.CompletedProcess[str]]
ADAPTERS = Path(__file__).parents[1] / "adapters" / "exact_adapters.py"


def errors_of(folder: Path) -> dict[str, str]:
    rows = [p for path in RunFolder(folder).written for p in predictions_from_table(read_table(path))]
    return {p.sample_id: p.error for p in rows if p.error}


def prediction_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in RunFolder(folder).written]


def test_shards_keep_images_whole_and_every_sample_once(embedded: Path) -> None:
    samples = load_samples("scenes/test")
    shards = plan_shards(samples)
    assert [s.sample_id for shard in shards for s in shard] == [s.sample_id for s in samples]
    assert all(len(shard) >= 256 for shard in shards[:-1])
    places = [{s.image_id for s in shard} for shard in shards]
    assert sum(len(p) for p in places) == len(set.union(*places))


@pytest.mark.parametrize("size", [1, 7, 32])
def test_batch_size_changes_no_byte_of_an_exact_adapter(embedded: Path, tmp_path: Path, size: int) -> None:
    reference = run(Threshold(), "scenes/val", batch_size=16, out=tmp_path / "16").folder
    other = run(Threshold(), "scenes/val", batch_size=size, out=tmp_path / str(size)).folder
    assert prediction_bytes(reference) == prediction_bytes(other)


def test_order_and_content_of_what_the_adapter_sees(photos: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, tuple[int, int]]] = []

    class Watching(Threshold):
        name = "watching"

        def segment(self, images: Any, expressions: Any) -> Any:
            seen.extend(zip(expressions, [(i.height, i.width) for i in images], strict=True))
            assert all(i.mode == "RGB" for i in images)
            return super().segment(images, expressions)

    run(Watching(), "refcoco/testB", batch_size=3, out=tmp_path / "run")
    expected = {(s.expression, (s.height, s.width)) for s in load_samples("refcoco/testB")}
    assert set(seen) == expected


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ValueError: no thanks"),
        ("float", "the mask must be bool, got float32"),
        ("size", "the mask must have the same shape as its image"),
        ("channel", "the mask must have the same shape"),
        ("nan", "the score must be a finite number"),
        ("few", "returned 0 masks for 1 expressions"),
    ],
)
def test_a_failing_sample_is_isolated_and_counted(embedded: Path, tmp_path: Path, how: str, message: str) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TooManyFailures, match=r"samples failed, 0 are allowed"):
        run(Misbehaving(how, "star"), "scenes/val", out=folder, batch_size=8)
    failed = errors_of(folder)
    expected = {s.sample_id for s in load_samples("scenes/val") if "star" in s.expression}
    assert set(failed) == expected
    assert all(message in text for text in failed.values())
    assert score(folder).summaries["refbench"].failures == len(expected)
    # Allowed, the same folder is a finished run.
    again = run(Misbehaving(how, "star"), "scenes/val", out=folder, max_failures=len(expected), batch_size=8)
    assert again.resumed == 500


@pytest.mark.parametrize("how", ["raise", "float", "size", "few", "none"])
def test_an_adapter_that_always_fails_stops_the_run(embedded: Path, tmp_path: Path, how: str) -> None:
    with pytest.raises(AdapterError, match="misbehaving failed on all of"):
        run(Misbehaving(how), "scenes/val", out=tmp_path / "run")


def test_out_of_memory_halves_the_batch_and_goes_on(embedded: Path, tmp_path: Path) -> None:
    said: list[str] = []
    adapter = Misbehaving("memory", "\0")
    result = run(adapter, "scenes/val", batch_size=16, out=tmp_path / "run", log=said.append)
    assert result.failures == 0
    assert adapter.largest == 16
    assert said[0] == "out of memory with 16 expressions; going on with 8 at a time"
    assert len(said) == 3
    fine = run(Misbehaving("fine", "\0"), "scenes/val", out=tmp_path / "fine").folder
    assert prediction_bytes(result.folder) == prediction_bytes(fine)


def test_what_fails_only_together_is_told_once(embedded: Path, tmp_path: Path) -> None:
    class Short(Threshold):
        def segment(self, images, expressions):  # type: ignore[no-untyped-def]
            if len(images) > 1:
                raise ValueError("no padding")
            return super().segment(images, expressions)

    said: list[str] = []
    result = run(Short(), "scenes/val", batch_size=8, limit=60, out=tmp_path / "run", log=said.append)
    assert result.failures == 0
    assert len(said) == 1
    assert re.fullmatch(
        r"a batch of \d expressions failed; retrying one by one: ValueError: no padding "
        r"\(test_runner.py, line \d+\)",
        said[0],
    )


PRINTING = """
import os
import numpy as np

class Printing:
    name = "printing"
    batch_size = 1

    def segment(self, images, expressions):
        print("from Python")
        os.write(1, b"to the descriptor\\n")
        os.system("echo from a shell")
        if len(expressions[0]) % 5 == 0:
            {}["red"]
        return [np.ones((i.height, i.width), bool) for i in images]
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_stdout_is_json_whatever_a_model_prints(embedded: Path, tmp_path: Path, workers: str, refbench: Cli) -> None:
    script = tmp_path / "printing.py"
    script.write_text(PRINTING)
    adapter = f"{script}:Printing"
    options = ["--limit", "40", "--workers", workers, "--out", tmp_path / "r", "--json"]
    done = refbench("run", adapter, "scenes/val", *options)
    assert done.returncode == 4
    # Failures end the run with a code; what it came to is told all the same.
    assert json.loads(done.stdout)["failures"] == len(errors_of(tmp_path / "r")) > 0
    assert set(errors_of(tmp_path / "r").values()) == {"KeyError: 'red' (printing.py, line 14)"}
    assert "from Python" in done.stderr
    assert "to the descriptor" in done.stderr


def test_closing_may_hang_or_fail(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refbench.runs.shard.CLOSE_SECONDS", 0.2)
    assert CLOSE_SECONDS > 1
    said: list[str] = []
    run(Misbehaving("hang", "\0"), "scenes/val", limit=20, out=tmp_path / "a", log=said.append)
    run(Misbehaving("close", "\0"), "scenes/val", limit=20, out=tmp_path / "b", log=said.append)
    assert "did not close within" in said[0]
    assert "the lid is stuck" in said[1]


def test_images_that_break_after_the_build_are_counted(photos: Path, test_data: Path, tmp_path: Path) -> None:
    copies = tmp_path / "images"
    copies.mkdir()
    for path in (test_data / "photos" / "images" / "train2014").iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    build_dataset("refcoco", build_refer, Sources(test_data / "photos" / "refer", copies), silent)
    samples = load_samples("refcoco/testB")
    paths = sorted({s.image_path for s in samples})
    Path(paths[0]).write_bytes(Path(paths[0]).read_bytes()[:5000])
    Path(paths[1]).unlink()
    broken = {s.sample_id for s in samples if s.image_path in paths[:2]}
    result = run(Threshold(), "refcoco/testB", out=tmp_path / "run", max_failures=len(broken))
    failed = errors_of(result.folder)
    assert set(failed) == broken
    assert json.loads((result.folder / "run.json").read_text())["failures"] == len(broken)
    assert {"cannot be decoded", "does not exist"} == {
        "cannot be decoded" if "cannot be decoded" in e else "does not exist" if "does not exist" in e else e
        for e in failed.values()
    }


def test_a_folder_of_another_run_is_refused(embedded: Path, tmp_path: Path) -> None:
    folder = run("nothing", "scenes/val", out=tmp_path / "run").folder
    for adapter, address, limit in (
        ("everything", "scenes/val", None),
        ("nothing", "scenes/test", None),
        ("nothing", "scenes/val", 9),
    ):
        with pytest.raises(RunError, match=r"belongs to another run .*choose another folder with --out"):
            run(adapter, address, limit=limit, out=folder)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "fingerprint": "0" * 64}))
    with pytest.raises(RunError, match=r"belongs to another run .fingerprint 0000"):
        run("nothing", "scenes/val", out=folder)
    with pytest.raises(RunError, match=r"a different version of scenes/val \(fingerprint"):
        score(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run.json is not valid JSON"):
        run("nothing", "scenes/val", out=folder)
    (folder / "run.json").unlink()
    with pytest.raises(RunError, match=r"contains predictions but no run\.json; choose another folder with"):
        run("nothing", "scenes/val", out=folder)


def test_a_damaged_shard_is_named(embedded: Path, tmp_path: Path) -> None:
    folder = run("nothing", "scenes/val", out=tmp_path / "run").folder
    path = RunFolder(folder).written[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        RunError, match=r"part-00000.parquet is damaged .*remove it and run the same `refbench run` command again"
    ):
        score(folder)


def test_a_missing_shard_is_noticed_and_made_again(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", "scenes/val", out=tmp_path / "run").folder
    before = prediction_bytes(folder)
    RunFolder(folder).written[1].unlink()
    with pytest.raises(RunError, match=r"lacks part-00001\.parquet; to complete it,"):
        score(folder)
    assert run("center", "scenes/val", out=folder).resumed == len(load_samples("scenes/val")) - len(
        plan_shards(load_samples("scenes/val"))[1]
    )
    assert prediction_bytes(folder) == before
    RunFolder(folder).written[0].write_bytes(b"PAR1")
    with pytest.raises(RunError, match="is damaged; remove it and run the same `refbench run` command again"):
        run("center", "scenes/val", out=folder)


def test_another_model_under_the_same_name_is_refused(embedded: Path, tmp_path: Path) -> None:
    text = "class A:\n    name = 'a'\n    def segment(self, images, expressions):\n"
    text += "        import numpy as np\n        return [np.{}((i.height, i.width), bool) for i in images]\n"
    (tmp_path / "m.py").write_text(text.format("zeros"))
    folder = run(f"{tmp_path}/m.py:A", "scenes/val", out=tmp_path / "run").folder
    (tmp_path / "m.py").write_text(text.format("ones"))
    with pytest.raises(RunError, match=r"another run .code_sha256 .*the code of the adapter has changed"):
        run(f"{tmp_path}/m.py:A", "scenes/val", out=folder)
    first = run(Threshold(0.0), "scenes/val", limit=5)
    assert run(Threshold(0.001), "scenes/val", limit=5).folder != first.folder
    with pytest.raises(RunError, match=r"belongs to another run .adapter_options"):
        run(Threshold(0.001), "scenes/val", limit=5, out=first.folder)


def test_repeating_a_finished_run_changes_no_byte(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", "scenes/val", out=tmp_path / "run").folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    run("center", "scenes/val", out=str(folder))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(RunError, match="batch_size 8 there, 3 now"):
        run("center", "scenes/val", out=folder, batch_size=3)


def test_an_adapter_file_may_import_its_neighbours(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "helper_of_theirs.py").write_text("LEVEL = 90\n")
    (tmp_path / "model_of_theirs.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import numpy as np\n"
        "from helper_of_theirs import LEVEL\n"
        "if TYPE_CHECKING:\n    from nowhere import Unknown\n"
        "class Theirs:\n"
        "    name = 'theirs'\n"
        "    def __init__(self, threshold=0.5, other: Unknown = None):\n"
        "        self.level = LEVEL * threshold\n"
        "    def segment(self, images, expressions):\n"
        "        return [np.asarray(i.convert('L')) > self.level for i in images]\n"
    )
    options = {"threshold": "0.25"}
    result = run(f"{tmp_path}/model_of_theirs.py:Theirs", "scenes/val", options=options, out=tmp_path / "run")
    assert result.failures == 0


def test_run_json_tells_where_a_number_comes_from(embedded: Path, tmp_path: Path) -> None:
    folder = run("noisy-oracle", "scenes/val", options={"dilate": "2", "seed": "5"}, out=tmp_path / "run").folder
    info = json.loads((folder / "run.json").read_text())
    assert info["adapter_options"] == {"dilate": "2", "seed": "5"}
    assert info["seed"] == 5
    assert info["fingerprint"] == manifest.split_fingerprint("scenes/val")
    assert {"numpy", "python", "pycocotools"} <= info["packages"].keys()
    assert info["finished"] >= info["started"]
    assert read_table(folder / "timings.parquet").num_rows == len(RunFolder(folder).written)


class Seen:
    """It keeps the kinds of samples that it gets."""

    name = "seen"
    needs_images = False

    def __init__(self, questions_suffice: bool) -> None:
        self.questions_suffice = questions_suffice
        self.kinds: set[type] = set()

    def segment_samples(self, samples: Sequence[Question], images: Sequence[Any]) -> list[Mask]:
        self.kinds |= {type(s) for s in samples}
        return [Mask.empty(s.height, s.width) for s in samples]


def test_targets_are_loaded_only_for_adapters_that_need_them(embedded: Path, tmp_path: Path) -> None:
    shards = []
    for suffice, kind in ((True, Question), (False, Sample)):
        adapter = Seen(suffice)
        result = run(adapter, "snapshots/test", out=tmp_path / kind.__name__)
        assert adapter.kinds == {kind}
        shards.append([path.read_bytes() for path in RunFolder(result.folder).shards])
    assert shards[0] == shards[1]


def test_timings_of_many_shards_are_not_written_after_each(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has a row for each shard, so that writing it after each would take the square of their number."""
    clock, rows = [0.0], []
    write = RunFolder.write_timings

    def slow(folder: RunFolder, timings: Sequence[ShardTiming]) -> None:
        clock[0] += 10.0
        rows.append(len(timings))
        write(folder, timings)

    monkeypatch.setattr(RunFolder, "write_timings", slow)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    result = run("nothing", "scenes/train", out=tmp_path / "run")
    shards = len(RunFolder(result.folder).shards)
    assert shards > 5
    assert rows == [1, shards]
    assert len(RunFolder(result.folder).timings()) == shards


def test_unfinished_runs_are_not_scored(embedded: Path, tmp_path: Path) -> None:
    folder = run("nothing", "scenes/val", out=tmp_path / "run").folder
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "finished": ""}))
    with pytest.raises(RunError, match="complete; to complete it,"):
        score(folder)


def test_datasets_without_images(test_data: Path, home: Path, tmp_path: Path) -> None:
    build_dataset("refcoco", build_refer, Sources(test_data / "photos" / "refer"), silent)
    with pytest.raises(DatasetError, match="built without images"):
        run(Threshold(), "refcoco/val", out=tmp_path / "a")
    assert run(Nothing(), "refcoco/val", out=tmp_path / "b").samples == 15


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("scenes", "write DATASET/SPLIT"),
        ("scenes/none", "has no split 'none' in the local build; its splits: test, train, val"),
        ("refcoco/val", "run `refbench build refcoco`"),
        ("scenes/../x", "write DATASET/SPLIT"),
        ("../x/val", "write DATASET/SPLIT"),
    ],
)
def test_addresses_that_lead_nowhere(embedded: Path, address: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        run("nothing", address)


def test_what_is_no_adapter(embedded: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not an adapter"):
        run(object(), "scenes/val")
    (tmp_path / "broken.py").write_text("import does_not_exist\n")
    (tmp_path / "empty.py").write_text("")
    for adapter, message in (
        ("no/such/file.py:X", "does not exist"),
        (f"{tmp_path}/broken.py:X", "cannot be imported"),
        (f"{tmp_path}/empty.py:X", "has no class 'X'"),
        (f"{tmp_path}/empty.py", "does not specify the adapter class"),
        (f"{ADAPTERS}:Misbehaving", "needs -o how="),
    ):
        with pytest.raises(AdapterError, match=message):
            run(adapter, "scenes/val")
    with pytest.raises(AdapterError, match="has no option 'nope'; its options are: seconds"):
        run(f"{ADAPTERS}:Threshold", "scenes/val", options={"nope": "1"})
    with pytest.raises(AdapterError, match="-o seconds='x' must be of type float"):
        run(f"{ADAPTERS}:Threshold", "scenes/val", options={"seconds": "x"})


def test_no_permission_or_space_is_one_message(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("refbench.storage.files.pq.write_table", full)
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device\. Results that were already"):
        run("nothing", "scenes/val", out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        run("nothing", "scenes/val", out=tmp_path / "file" / "run")


def test_folders_of_runs_with_long_options_differ(home: Path) -> None:
    short = default_folder("mine", {"a": "1"}, "d/s")
    assert short == home / "runs" / "mine,a=1" / "d-s"
    long = {"repo": "/a/very/long/path" * 9}
    one, other = (default_folder("mine", {**long, "weights": w}, "d/s") for w in ("x", "y"))
    assert one != other
    assert len(one.parent.name) == 120


def test_what_an_adapter_may_have_is_checked_when_it_is_loaded(embedded: Path, tmp_path: Path) -> None:
    class Odd(Threshold):
        batch_size = None
        remarks = "a text where refbench expects a method"

    with pytest.raises(
        AdapterError, match=r"\.remarks, so this attribute must be a method, got str; if the attribute has"
    ):
        run(Odd(), "snapshots/test", out=tmp_path / "a")
    del Odd.remarks
    with pytest.raises(AdapterError, match=r"the batch size of .* must be a positive integer, got None"):
        run(Odd(), "snapshots/test", out=tmp_path / "b")
    # A size of the caller's takes its place.
    assert run(Odd(), "snapshots/test", batch_size=4, out=tmp_path / "c").failures == 0
