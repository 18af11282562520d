"""Workers around official repositories, with small random weights: what they answer is what the official code answers.

The repositories are no part of the project. `REFBENCH_OFFICIAL` names a folder with checkouts `lavt`, `magnet` and
`mllmseg`; `REFBENCH_MLLMSEG_PYTHON` an interpreter with the packages of that worker's locked file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapters.official_checkpoints import NUMBERS
from PIL import Image

from refbench.adapters.worker import SDK
from refbench.environments import recipes
from refbench.errors import AdapterError, RunStopped
from refbench.mask import Mask
from refbench.plugins import load_adapter
from refbench.records import Sample

MAKER = Path(__file__).parent / "official_checkpoints.py"


def repository(name: str) -> Path:
    folder = Path(os.environ.get("REFBENCH_OFFICIAL", "/nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"no checkout of {name}: set REFBENCH_OFFICIAL to the folder that holds it")
    return folder


@pytest.mark.parametrize("kind", ["lavt", "lavt_one", "magnet", "mllmseg", "mllmseg_gres"])
def test_the_answer_is_the_official_one(kind: str, tmp_path: Path) -> None:
    name = kind.partition("_")[0]
    repo = repository(name)
    python = os.environ.get("REFBENCH_MLLMSEG_PYTHON", "") if name == "mllmseg" else sys.executable
    if not python:
        pytest.skip("no interpreter for MLLMSeg: set REFBENCH_MLLMSEG_PYTHON")
    environment = {**os.environ, "PYTHONPATH": str(SDK), "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        [python, str(MAKER), kind, str(repo), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-3000:]
    options = {"repo": str(repo), "python": python}
    if name == "mllmseg":
        options |= {"weights": str(tmp_path / "weights"), "task": "gres" if kind == "mllmseg_gres" else "res"}
    else:
        options |= {"weights": str(tmp_path / "weights.pth"), "bert": str(tmp_path / "bert")}
        options["architecture"] = json.dumps(NUMBERS[name])
    if name == "lavt":
        options["kind"] = kind
    expected = np.load(tmp_path / "expected.npy")
    assert 0 < expected.mean() < 1
    sample = asked(tmp_path / "picture.png", (tmp_path / "expression.txt").read_text())
    for mode in ("forced", "generate") if name == "mllmseg" else ("",):
        worker = load_adapter(name, options | ({"mode": mode} if mode else {}))
        answer = worker.segment_samples([sample], [None])[0]
        worker.close()
        assert worker.mode == mode
        assert len(worker.weights_sha256) == 64
        if mode == "generate":
            # Random weights write no [SEG].
            assert (answer.mask.area, answer.no_target, answer.note) == (0, True, "no [SEG] in the answer")
            continue
        assert (answer.mask.to_array() != expected).mean() < 1e-4
        notes = {"mllmseg": "", "mllmseg_gres": "[REJ] in place of [SEG]"}
        assert answer.note == notes.get(kind, "text cut to 20 tokens")
        if name == "mllmseg":
            assert (tmp_path / "rejected.txt").read_text() == str(kind == "mllmseg_gres")
            assert answer.no_target == (True if kind == "mllmseg_gres" else None)


def asked(path: Path, expression: str) -> Sample:
    with Image.open(path) as image:
        height, width = image.height, image.width
    nothing = Mask.empty(height, width)
    return Sample("d/s/0/0", "0", str(path), height, width, expression, expression, "0", "0", (), "", nothing, True)


@pytest.mark.parametrize("name", ["lavt", "magnet"])
def test_a_checkpoint_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    repo = repository(name)
    environment = {**os.environ, "PYTHONPATH": str(SDK)}
    subprocess.run([sys.executable, str(MAKER), name, str(repo), str(tmp_path)], env=environment, check=True)
    options = {"repo": str(repo), "python": sys.executable, "weights": str(tmp_path / "weights.pth")}
    options["bert"] = str(tmp_path / "bert")
    numbers = {**NUMBERS[name], "depths": [1, 1, 3, 1]}
    with pytest.raises(AdapterError, match="the checkpoint does not fit"):
        load_adapter(name, {**options, "architecture": json.dumps(numbers)})
    with pytest.raises(AdapterError, match="unknown in architecture: wings"):
        load_adapter(name, {**options, "architecture": '{"wings": 2}'})


def test_what_is_missing_is_named(home: Path, tmp_path: Path) -> None:
    options = {"repo": str(tmp_path), "weights": str(tmp_path), "bert": str(tmp_path)}
    with pytest.raises(AdapterError, match=r"there is no environment 'lavt' .*refbench env build lavt.*-o python=PATH"):
        load_adapter("lavt", options)
    with pytest.raises(AdapterError, match=r"give a checkout of https://github.com/yz93/LAVT-RIS with -o repo=FOLDER"):
        load_adapter("lavt", {**options, "python": sys.executable})
    with pytest.raises(AdapterError, match=r"magnet needs -o weights=... *, -o bert=..."):
        load_adapter("magnet", {"repo": str(tmp_path)})


def test_every_worker_that_comes_along_is_described() -> None:
    for name, recipe in recipes().items():
        assert {"summary", "python", "repository", "commit", "licence", "weights"} <= recipe.keys(), name
        folder = SDK.parent / name
        assert (folder / "worker.py").is_file()
        lines = [x for x in (folder / "requirements.lock").read_text().splitlines() if x and not x.startswith("#")]
        assert all("==" in line for line in lines), name


# The engine needs a GPU; this package stands for it, so that all around it is run.
ENGINE = """
import types

BOX = {"x_min": 0.25, "y_min": 0.5, "x_max": 0.75, "y_max": 1.0}
ANSWERS = {
    "nothing": {"svg_path": "", "bbox": None},
    "coarse": {"svg_path": "M0 0H1V1H0Z", "coarse_path": "M0 0H1V1H0Z", "bbox": BOX},
}


class Engine:
    def segment(self, image, object, settings):
        assert settings == {"temperature": 0.0}
        assert image[1:4] == b"PNG"
        refined = {"svg_path": "M0 0H1V1H0Z", "coarse_path": "M 0 0", "bbox": BOX}
        return types.SimpleNamespace(output={"segments": [ANSWERS.get(object, refined)]})


class Client:
    # As the package's own, whose method `segment` leaves the coarse path out.
    _model = Engine()

    def _run(self, result):
        return result

    def _settings(self, settings):
        return settings


def photon(model):
    assert model == "a-model"
    return Client()
"""


def test_moondream_on_an_own_gpu(tmp_path: Path) -> None:
    bin_folder = tmp_path / "engine"
    bin_folder.mkdir()
    (bin_folder / "moondream.py").write_text(ENGINE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{bin_folder}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = {"python": str(python), "model": "a-model"}
    worker = load_adapter("moondream-local", options, device="cuda:0")
    Image.new("RGB", (40, 20)).save(tmp_path / "picture.png")

    def ask(words: str):  # type: ignore[no-untyped-def]
        return worker.segment_samples([asked(tmp_path / "picture.png", words)], [None])[0]

    answer = ask("the man")
    expected = np.zeros((20, 40), bool)
    expected[10:20, 10:30] = True
    assert np.array_equal(answer.mask.to_array(), expected)
    assert json.loads(answer.raw)["refined"] is True
    assert (ask("coarse").note, ask("coarse").mask.area) == ("a coarse outline", 200)
    assert (ask("nothing").note, ask("nothing").mask.area) == ("no path in the answer", 0)
    worker.close()
    # Nothing refined in the first answers: the refiner is missing, and the figure would be of another system.
    worker = load_adapter("moondream-local", options, device="cuda:0")
    for _ in range(7):
        ask("coarse")
    with pytest.raises(RunStopped, match=r"refines nothing, or does not tell: its refiner needs cv2"):
        ask("coarse")
    worker.close()
    with pytest.raises(AdapterError, match="needs a GPU: --device cuda:0"):
        load_adapter("moondream-local", options, device="cpu")
