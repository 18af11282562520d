"""Workers around official repositories, with small random weights: what they answer is what the official code answers.

The repositories are no part of the project. `REFBENCH_OFFICIAL` names a folder with checkouts `lavt`, `magnet`,
`mllmseg`, `lisa`, `evfsam`, `sa2va`, `samtok` and `xsam`, and in `venvs/NAME` environments with the packages of the
workers' locked files.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapters.official_checkpoints import NUMBERS
from PIL import Image

from refbench.adapters.environments import recipes
from refbench.adapters.worker import SDK, Worker
from refbench.errors import AdapterError, RunStopped
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_adapter
from refbench.records import Answer, Sample

pytestmark = pytest.mark.slow  # official code

MAKER = Path(__file__).parent / "official_checkpoints.py"


# A checkpoint of each kind: the adapter, the options that it needs besides, what the answer is to say.
SCALES = {"bert": "bert", "note": "text cut to 20 tokens"}
KINDS: dict[str, dict[str, str]] = {
    "lavt": {"kind": "lavt", **SCALES},
    "lavt_one": {"kind": "lavt_one", **SCALES},
    "magnet": SCALES,
    "mllmseg": {},
    "mllmseg_internlm": {},
    "mllmseg_gres": {"task": "gres", "note": "[REJ] in place of [SEG]"},
    "lisa": {"clip": "clip-vit", "note": "text longer than the 512 tokens of training"},
    "sa2va": {"trust_remote_code": "yes"},
    "sa2va_qwen": {"trust_remote_code": "yes"},
    "samtok": {"repo": "repository"},
    "xsam": {"inits": "inits"},
    "evfsam_ori": {"repo": "repository", "kind": "ori"},
    "evfsam_sam2": {"repo": "repository", "kind": "sam2", "release": "multitask"},
    "evfsam_first": {"repo": "repository", "kind": "sam2", "release": "first"},
    "evfsam_effi": {"repo": "repository", "kind": "effi", "release": "multitask"},
}
IN_FOLDER = ("weights", "bert", "clip", "repo", "inits")
# What the small networks were made to write; the rest only read an answer, or have none.
WRITES = {
    "mllmseg": "[SEG]<|im_end|>",
    "mllmseg_internlm": "[SEG]<|im_end|>",
    "lisa": "[SEG]</s>",
    "sa2va": "[SEG]<|im_end|>",
    "sa2va_qwen": "[SEG]<|im_end|>",
    "samtok": "<|mt_start|><|mt_0123|><|mt_0345|><|mt_end|><|im_end|>",
    "xsam": "<SEG><|end|>",
}
MODES = {
    "mllmseg": ("forced", "generate"),
    "lisa": ("forced", "generate"),
    "xsam": ("forced", "generate"),
    "sa2va": ("generate",),
    "samtok": ("generate",),
}
# These run with what refbench is tested with.
WITH_OURS = ("lavt", "magnet")
BY_CODE_OF_THE_WEIGHTS = ("sa2va",)


def repository(name: str) -> Path:
    folder = Path(os.environ.get("REFBENCH_OFFICIAL", "/nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"no checkout of {name}: set REFBENCH_OFFICIAL to the folder that holds it")
    return folder


def interpreter(name: str) -> str:
    if name in WITH_OURS:
        return sys.executable
    python = Path(os.environ["REFBENCH_OFFICIAL"]) / "venvs" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no interpreter for {name}: {python} (with what the worker's requirements.lock lists)")
    return str(python)


def made(kind: str, folder: Path) -> dict[str, str]:
    """Options for a small random checkpoint, made by the repository's own code."""
    name = kind.partition("_")[0]
    repo, python = str(repository(name)), interpreter(name)
    environment = {**os.environ, "PYTHONPATH": str(SDK), "HF_HUB_OFFLINE": "1"}
    command = [python, str(MAKER), kind, repo, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    options = {"python": python, "weights": "weights" if (folder / "weights").is_dir() else "weights.pth"}
    options |= {k: v for k, v in KINDS[kind].items() if k != "note"}
    options |= {k: str(folder / v) for k, v in options.items() if k in IN_FOLDER}
    if name not in BY_CODE_OF_THE_WEIGHTS:
        options.setdefault("repo", repo)
    if name in NUMBERS:
        options["architecture"] = json.dumps(NUMBERS[name])
    return options


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_official_one(kind: str, tmp_path: Path) -> None:
    name = kind.partition("_")[0]
    options = made(kind, tmp_path)
    sample = asked(tmp_path / "picture.png", (tmp_path / "expression.txt").read_text())
    with Image.open(tmp_path / "picture.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "other.png")
    other = dataclasses.replace(asked(tmp_path / "other.png", "a man"), sample_id="d/s/1/0")
    sibling = dataclasses.replace(sample, sample_id="d/s/2/0", expression="the red ball", raw_expression="the red ball")
    modes = MODES.get(name, ("",))
    for mode in modes:
        worker = load_adapter(name, options | ({"mode": mode} if len(modes) > 1 else {}))

        def ask(*samples: Sample, worker: Worker = worker) -> list[Answer]:
            return worker.segment_samples(samples, [None] * len(samples))

        answer = ask(sample)[0]
        # Neither the company nor the order of questions matters, nor what was kept of the image before.
        alone = [answer, ask(other)[0], ask(sibling)[0]]
        for together in (ask(sample, other, sibling), ask(sample, sibling, other)):
            order = [0, 1, 2] if together[1].mask.height == other.height else [0, 2, 1]
            for place, one in zip(order, together, strict=True):
                assert (one.mask.to_array() != alone[place].mask.to_array()).mean() < 1e-4
        worker.close()
        assert worker.mode == mode
        assert len(worker.weights_sha256) == 64
        if kind == "mllmseg_gres" and mode == "generate":
            # This one writes no [SEG].
            assert (answer.mask.area, answer.no_target, answer.note) == (0, True, "no [SEG] in the answer")
            continue
        found = tmp_path / "written.npy"
        expected = np.load(found if mode == "generate" and found.exists() else tmp_path / "expected.npy")
        assert 0 < expected.mean() < 1
        assert (answer.mask.to_array() != expected).mean() < 1e-4
        assert answer.note == KINDS[kind].get("note", "")
        assert answer.no_target == (True if kind == "mllmseg_gres" else None)
        if mode == "generate":
            assert answer.raw.replace(" ", "") == WRITES[kind]
        elif name == "mllmseg":
            assert (tmp_path / "rejected.txt").read_text() == str(kind == "mllmseg_gres")


def test_lisa_asks_sentences_as_they_stand(tmp_path: Path) -> None:
    worker = load_adapter("lisa", made("lisa", tmp_path))
    phrase = asked(tmp_path / "picture.png", (tmp_path / "expression.txt").read_text())
    sentence = dataclasses.replace(phrase, sample_id="d/s/1/0", tags=("sentence",))
    answers = worker.segment_samples([phrase, sentence], [None, None])
    worker.close()
    for answer, name in zip(answers, ("expected", "sentence"), strict=True):
        assert (answer.mask.to_array() != np.load(tmp_path / f"{name}.npy")).mean() < 1e-4
    assert answers[0].mask != answers[1].mask


# What the language model is asked, seen from inside.
QUESTION = """
import json
import sys

from PIL import Image

sys.path.insert(0, sys.argv[1])
import worker

model = worker.SamTok(json.loads(sys.argv[2]), "cpu")
write, seen = model.network.generate, []


def generate(**asked):
    seen.append((asked["input_ids"][0], {k: asked[k] for k in ("max_new_tokens", "do_sample")}))
    return write(**asked)


model.network.generate = generate
model.segment([Image.new("RGB", (64, 64))], [sys.argv[3]])
text = model.processor.tokenizer.decode(seen[0][0]).replace("<|image_pad|>", "")
sys.stderr.write(json.dumps([text, seen[0][1]]))
"""


@pytest.mark.parametrize(("rule", "words"), [("refcoco", "The BALL ."), ("gres", "the ball .")])
def test_samtok_is_asked_as_published(rule: str, words: str, tmp_path: Path) -> None:
    options = {**made("samtok", tmp_path), "rule": rule}
    environment = {**os.environ, "PYTHONPATH": str(SDK), "HF_HUB_OFFLINE": "1"}
    command = [options.pop("python"), "-W", "ignore", "-c", QUESTION, str(SDK.parent / "samtok"), json.dumps(options)]
    done = subprocess.run([*command, "The BALL ."], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text, settings = json.loads(done.stderr[done.stderr.index('["<|im_start|>user') :])
    asked_for = f"Please segment {words} in this image."
    assert text == (f"<|im_start|>user\n<|vision_start|><|vision_end|>{asked_for}<|im_end|>\n<|im_start|>assistant\n")
    assert settings == {"max_new_tokens": 128, "do_sample": False}


def asked(path: Path, expression: str) -> Sample:
    with Image.open(path) as image:
        height, width = image.height, image.width
    nothing = Mask.empty(height, width)
    return Sample("d/s/0/0", "0", str(path), height, width, expression, expression, "0", "0", (), "", nothing, True)


@pytest.mark.parametrize("kind", ["lavt", "magnet"])
def test_a_checkpoint_that_does_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    options = made(kind, tmp_path)
    numbers = {**NUMBERS[kind], "depths": [1, 1, 3, 1]}
    with pytest.raises(AdapterError, match="the checkpoint does not fit"):
        load_adapter(kind, {**options, "architecture": json.dumps(numbers)})
    with pytest.raises(AdapterError, match="unknown in architecture: wings"):
        load_adapter(kind, {**options, "architecture": '{"wings": 2}'})


def test_what_is_missing_is_named(home: Path, tmp_path: Path) -> None:
    options = {"repo": str(tmp_path), "weights": str(tmp_path), "bert": str(tmp_path)}
    with pytest.raises(
        AdapterError, match=r"the environment 'lavt' does not exist .*refbench env build lavt.*-o python=PATH"
    ):
        load_adapter("lavt", options)
    with pytest.raises(AdapterError, match=r"give a checkout of https://github.com/yz93/LAVT-RIS with -o repo=FOLDER"):
        load_adapter("lavt", {**options, "python": sys.executable})
    with pytest.raises(AdapterError, match=r"magnet needs -o weights=... *, -o bert=..."):
        load_adapter("magnet", {"repo": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lisa", {"mode": "guess"}, r"mode='guess' must be one of forced, generate"),
        ("sa2va", {}, r"contain Python code .* pass -o trust_remote_code=yes"),
        ("sa2va", {"trust_remote_code": "yes"}, r"there is no config.json in "),
        ("samtok", {}, r"there is no mask_tokenizer_256x2.pth in "),
        ("xsam", {}, r"is a folder of DeepSpeed; give the pytorch_model.bin"),
        ("evfsam", {"kind": "sam2"}, r"which weights these are with -o release=multitask\|first .there is no default"),
        ("evfsam", {"kind": "sam4"}, r"kind='sam4' must be one of ori, sam2, effi"),
    ],
)
def test_what_has_to_be_said_is_asked_for(name: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    wanted = {
        "lisa": "model/LISA.py",
        "samtok": "projects/samtok/models/sam2.py",
        "xsam": "xsam/xsam/model/xsam.py",
        "evfsam": "model/evf_sam.py",
    }
    given = {"weights": str(tmp_path), "python": sys.executable, **options}
    if name in wanted:
        (tmp_path / wanted[name]).parent.mkdir(parents=True)
        (tmp_path / wanted[name]).touch()
        given["repo"] = str(tmp_path)
    given |= {"lisa": {"clip": str(tmp_path)}, "xsam": {"inits": str(tmp_path)}}.get(name, {})
    with pytest.raises(AdapterError, match=message):
        load_adapter(name, given)


START, END = "<|mt_start|>", "<|mt_end|>"


@pytest.mark.parametrize(
    ("tokens", "one", "several"),
    [
        ([START, 123, 345, END], [(123, 89)], [(123, 89)]),
        ([123, 345], [(123, 89)], [(123, 89)]),
        ([START, 123, END], [(123, -1)], [(123, -1)]),
        ([START, 123], [(123, -1)], [(123, -1)]),
        ([START, 123, START], [(123, -1)], []),
        ([START, 345, END], [], []),
        ([START, 123, 345, 400, END], [(123, 144)], [(123, 89)]),
        ([START, 345, 123, END], [(123, 89)], []),
        ([START, 123, 345, END, START, 7, 456, END], [(7, 200)], [(123, 89), (7, 200)]),
        # An even number of tokens: nothing is mended, and two halves make one pair.
        ([START, 1, END, START, 2, END], [(2, -1)], [(1, -1)]),
        (["there is none"], [], []),
    ],
)
def test_mask_tokens_make_masks_by_the_published_rules(
    tokens: list[str | int],
    one: list[tuple[int, int]],
    several: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SDK))
    path = SDK.parent / "samtok" / "worker.py"
    spec = importlib.util.spec_from_file_location("samtok_worker", path)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    text = "".join(f"<|mt_{token:04d}|>" if isinstance(token, int) else token for token in tokens)
    assert worker.one_mask(text) == one
    assert worker.several_masks(text) == several


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
    with pytest.raises(RunStopped, match=r"refines nothing, or does not report it: its refiner needs cv2"):
        ask("coarse")
    worker.close()
    with pytest.raises(AdapterError, match="needs a GPU: --device cuda:0"):
        load_adapter("moondream-local", options, device="cpu")
