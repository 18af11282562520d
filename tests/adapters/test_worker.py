"""Workers in processes of their own: the same masks as in process, and every way in which they can go wrong."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from adapters.exact_adapters import Threshold
from events import GIVE_UP_SECONDS
from PIL import Image

from refbench import load_samples, run
from refbench.adapters.contract import _ODD_PICTURES, FAILED, check_adapter
from refbench.adapters.worker import SDK, Worker
from refbench.errors import AdapterError, RunStopped
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_adapter
from refbench.records import Sample
from refbench.runs.folder import RunFolder
from refbench.storage.files import read_table
from refbench.storage.images import to_rgb
from refbench.storage.predictions import predictions_from_table

pytestmark = pytest.mark.slow  # many processes

FAKE = Path(__file__).parent / "fake_worker.py"
SPLIT = "scenes/val"


def predictions(folder: Path) -> dict[str, object]:
    return {p.sample_id: p for path in RunFolder(folder).written for p in predictions_from_table(read_table(path))}


def options(mode: str, **more: str) -> dict[str, str]:
    return {"script": str(FAKE), "mode": mode, **more}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refbench.adapters.worker.LONGEST_BACK_OFF_SECONDS", 0.01)


@pytest.fixture(scope="module")
def expected(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBENCH_HOME", str(embedded_home))
        return predictions(run(Threshold(), SPLIT, limit=60, out=tmp_path_factory.mktemp("here") / "run").folder)


@pytest.mark.parametrize("mode", ["ok", "noisy", "verbose", "oom"])
def test_what_a_worker_may_do(embedded: Path, tmp_path: Path, expected: dict[str, object], mode: str) -> None:
    said: list[str] = []
    result = run("worker", SPLIT, options=options(mode), limit=60, out=tmp_path / "run", log=said.append)
    assert predictions(result.folder) == expected
    info = json.loads((result.folder / "run.json").read_text())
    assert info["adapter"] == "fake"
    assert {"worker python", "worker numpy"} <= info["packages"].keys()
    assert len(info["code_sha256"]) == 64
    assert bool(said) == (mode == "oom")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crash", "the worker ended with exit code 7"),
        ("segfault", "the worker was killed by SIGSEGV"),
        ("hang", "the worker did not answer before the timeout"),
        ("raise", "the worker failed: ValueError: no thanks"),
        ("oom-alone", "the worker ran out of memory: MemoryError: not even one"),
        ("wrong-size", "the worker failed: ValueError: a mask has the shape"),
        ("float", "the worker failed: ValueError: a mask must be bool, not float32"),
    ],
)
def test_a_sample_that_breaks_a_worker_fails_alone(
    embedded: Path, tmp_path: Path, expected: dict[str, object], mode: str, message: str
) -> None:
    word = load_samples(SPLIT)[30].expression
    # Long enough that no honest answer takes as long on a busy machine.
    waiting = {"timeout": "6"} if mode == "hang" else {}
    chosen = options(mode, word=word, count=str(tmp_path / "starts"), **waiting)
    said: list[str] = []
    result = run("worker", SPLIT, options=chosen, limit=60, out=tmp_path / "run", max_failures=3, log=said.append)
    found = predictions(result.folder)
    hit = {s.sample_id for s in load_samples(SPLIT)[:60] if word in s.expression}
    failed = {key: p.error for key, p in found.items() if p.error}  # type: ignore[attr-defined]
    assert failed.keys() == hit
    assert all(message in error for error in failed.values())
    assert {k: p for k, p in found.items() if k not in hit} == {k: p for k, p in expected.items() if k not in hit}
    starts = (tmp_path / "starts").read_text().count("start")
    assert starts == (1 if mode not in ("crash", "segfault", "hang") else 1 + 2 * len(hit))
    # And none of its deaths goes untold.
    assert sum("has to be started again" in line for line in said) == starts - 1
    # What a hanging worker had started is gone too.
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "4321"]]


def test_an_option_that_nobody_asked_for_is_told(embedded: Path, tmp_path: Path) -> None:
    said: list[str] = []
    chosen = options("ok", levle="3")
    run("worker", SPLIT, options=chosen, limit=5, out=tmp_path / "run", log=said.append)
    assert said == ["the worker does not use the option 'levle'"]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("twice", "the worker returned two answers for scenes/val"),
        ("unknown", "sent an unexpected message: .*nobody/asked"),
        ("size", "cannot be read: ValueError: the mask must have the same size"),
        ("missing", "returned no answer for scenes/val"),
        ("garbage", "sent a line that is not a message: b'this is not JSON"),
        ("truncated", "the worker ended with exit code 0"),
        ("bomb", r"the decompressed mask must have \d+ bytes"),
        ("encoding", "unknown encoding 'telepathy'"),
        ("nan", "the score must be a finite number"),
        ("future", "did not start"),
    ],
)
def test_a_worker_that_breaks_the_protocol_stops_the_run(
    embedded: Path, tmp_path: Path, mode: str, message: str
) -> None:
    script = tmp_path / f"bare_{mode}.py"
    shutil.copy(FAKE, script)
    with pytest.raises(AdapterError, match=message):
        run("worker", SPLIT, options={"script": str(script)}, limit=4, out=tmp_path / "run")


def test_workers_that_do_not_start(embedded: Path, tmp_path: Path) -> None:
    for chosen, message in (
        (options("stillborn"), "did not start: OSError: no weights here"),
        (options("slow-start", start_timeout="0.5"), "did not start: the worker did not answer before the timeout"),
        ({"script": str(tmp_path / "none.py")}, r"none.py does not exist; pass its path with -o script=FILE"),
        (options("ok", python="/no/python"), r"/no/python .* cannot be started: No such file"),
        (options("ok", env="none"), r"the environment 'none' does not exist .*refbench env build none"),
        (options("ok", env="../up"), "is not a valid environment name"),
    ):
        with pytest.raises(AdapterError, match=message):
            load_adapter("worker", chosen)
    (tmp_path / "broken.py").write_text("import this_is_not_there\n")
    with pytest.raises(AdapterError, match="No module named 'this_is_not_there'"):
        load_adapter("worker", {"script": str(tmp_path / "broken.py")})


def test_one_that_always_dies_is_not_started_for_ever(embedded: Path, tmp_path: Path) -> None:
    count = tmp_path / "starts"
    with pytest.raises(
        RunStopped, match="failed 16 times in a row without an answer: the worker ended with exit code 7"
    ):
        run("worker", SPLIT, options=options("crash", count=str(count)), limit=40, out=tmp_path / "run")
    assert count.read_text().count("start") == 16


def test_orphans_end(tmp_path: Path) -> None:
    worker = Worker(FAKE)
    process = psutil.Process(worker._child._process.pid)  # type: ignore[union-attr]
    assert process.is_running()
    # As when the parent is killed: its end of the channel closes.
    worker._child._process.stdin.close()  # type: ignore[union-attr]
    process.wait(10)
    worker.close()


def test_the_environment_of_the_parent_stays_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONDREAM_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    script = tmp_path / "telling.py"
    script.write_text(
        "import json, os, numpy as np\nfrom worker_sdk import Answer, serve\n"
        "class Telling:\n    def __init__(self, config, device):\n"
        "        self.said = json.dumps({'device': device, 'config': config, 'environment': dict(os.environ)})\n"
        "    def segment(self, images, expressions):\n"
        "        return [Answer(np.zeros((i.height, i.width), bool), note='a remark', raw=self.said) for i in images]\n"
        "serve(Telling)\n"
    )
    worker = load_adapter("worker", {"script": str(script), "shots": "3"}, device="cuda:1")
    sample = load_samples_of_one(tmp_path)
    answer = worker.segment_samples([sample], [Image.new("RGB", (9, 7))])[0]
    worker.close()
    told = json.loads(answer.raw)
    assert answer.note == "a remark"
    assert told["device"] == "cuda:0"
    assert told["config"] == {"shots": "3"}
    assert told["environment"]["CUDA_VISIBLE_DEVICES"] == "7"
    assert told["environment"]["PYTHONPATH"] == str(SDK)
    assert "secret" not in answer.raw


def load_samples_of_one(folder: Path) -> Sample:

    return Sample("d/s/0/0", "0", "", 7, 9, "it", "it", "0", "0", (), "", Mask.empty(7, 9), True)


def test_a_worker_keeps_the_contract() -> None:
    worker = Worker(FAKE)
    assert {c.name: c.detail for c in check_adapter(worker) if c.verdict == FAILED} == {}
    worker.close()


@pytest.fixture(scope="module")
def sdk() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker_sdk", SDK / "worker_sdk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sdk_is_one_file_for_old_interpreters(sdk: ModuleType) -> None:
    source = (SDK / "worker_sdk.py").read_text()
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    # torch only to make it repeatable, where the model has brought it along.
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL", "torch"}
    top = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    assert "torch" not in top


def test_the_sdk_opens_pictures_as_refbench_does(sdk: ModuleType) -> None:
    for name, make in _ODD_PICTURES.items():
        assert np.array_equal(np.asarray(sdk.to_rgb(make())), np.asarray(to_rgb(make()))), name


def test_ping_cancel_and_shutdown(tmp_path: Path) -> None:
    worker = Worker(FAKE)
    child = worker._child
    child.tell({"op": "ping"}, time.monotonic() + GIVE_UP_SECONDS)
    assert child.hear(time.monotonic() + GIVE_UP_SECONDS)["type"] == "pong"
    child.tell({"op": "cancel", "id": "9"}, time.monotonic() + GIVE_UP_SECONDS)
    item = {"sid": "a", "image": str(tmp_path / "x.png"), "size": [4, 4], "expression": "it"}
    child.tell({"op": "predict", "id": "9", "items": [item]}, time.monotonic() + GIVE_UP_SECONDS)
    assert child.hear(time.monotonic() + GIVE_UP_SECONDS)["message"] == "cancelled"
    assert child.hear(time.monotonic() + GIVE_UP_SECONDS) == {"type": "done", "id": "9"}
    child.tell({"op": "predict", "id": "10", "items": [item]}, time.monotonic() + GIVE_UP_SECONDS)
    assert "does not exist" in child.hear(time.monotonic() + GIVE_UP_SECONDS)["message"]
    child.tell({"op": "dance"}, time.monotonic() + GIVE_UP_SECONDS)
    assert child.hear(time.monotonic() + GIVE_UP_SECONDS)["type"] == "done"
    assert "unknown op" in child.hear(time.monotonic() + GIVE_UP_SECONDS)["message"]
    process = child._process
    child.end()
    assert process is not None
    assert process.returncode == 0
    assert not child.alive
    assert os.path.exists(FAKE)
