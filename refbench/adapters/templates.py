"""Templates for adapters: files that run as they are, and that users then fill in."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from refbench.errors import AdapterError
from refbench.storage.files import atomic_file

ADAPTER = '''"""{name}: a segmenter for refbench."""

import numpy as np


class {class_name}:
    name = "{name}"
    batch_size = 8  # expressions per call, for `--batch-size auto`

    def __init__(self, device: str = "cpu", level: int = 128):
        # Load the model here. Every parameter is an option of the run: -o level=100
        self.device = device
        self.level = level

    def segment(self, images, expressions):
        """PIL RGB images and texts, lists of one length -> a list of bool (H, W) arrays or tensors.

        The same image object comes once for each expression about it; test with `image is previous_image`.
        """
        return [np.asarray(image.convert("L")) > self.level for image in images]
'''

WORKER = '''"""{name}: a segmenter for refbench that runs in an environment of its own.

refbench starts this file with the interpreter that you name and hands it images and expressions. It needs numpy and
Pillow besides what your model needs; Python may be as old as 3.7. Print what you like: it ends in the log.
"""

import numpy as np
from worker_sdk import Answer, serve


class {class_name}(object):
    name = "{name}"  # under which the run is stored
    max_batch = 8  # expressions per call

    def __init__(self, config, device):
        # Load the model here. `config` holds the -o key=value of the run, as texts; `device` is cpu or cuda:0.
        # self.weights_sha256 = sha256_of("weights.pth")  # from worker_sdk: so that a run records its weights
        self.level = int(config.get("level", "128"))

    def segment(self, images, expressions):
        """PIL RGB images and texts, lists of one length -> a list of bool (H, W) arrays or Answers."""
        out = []
        for image, expression in zip(images, expressions):
            mask = np.asarray(image.convert("L")) > self.level
            out.append(Answer(mask, score=float(mask.mean())))
        return out


if __name__ == "__main__":
    serve({class_name})
'''

TAKEN = ("none", "true", "false", "numpy", "pil", "torch", "worker_sdk", "refbench")
REQUIREMENTS = """# What your model needs, in exact versions. This installs them, away from everything else:
#   refbench env build {name} --lock {file}
numpy
Pillow
"""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The files that were written, and the commands to try them."""

    files: list[Path]
    commands: list[str]


def write_adapter(name: str, folder: Path) -> Skeleton:
    """Write `<name>.py` with a class that runs in the process of refbench.

    Raises:
        AdapterError: `name` is not a valid name, or a file with this name exists.
    """
    module, class_name = _names(name)
    file = folder / f"{module}.py"
    _write({file: ADAPTER.format(name=name, class_name=class_name)})
    place = shlex.quote(f"{file}:{class_name}")
    return Skeleton([file], [f"refbench check-adapter {place}", f"refbench run {place} scenes/test"])


def write_worker(name: str, folder: Path) -> Skeleton:
    """Write a folder with `<name>.py`, which runs in its own process, the SDK that it needs, and a requirements file.

    Raises:
        AdapterError: `name` is not a valid name, or one of the files exists.
    """
    module, class_name = _names(name)
    place = folder / module
    script, requirements = place / f"{module}.py", place / "requirements.txt"
    # Not worker_sdk.py: refbench brings its own, so that both ends speak the same protocol.
    _write(
        {
            script: WORKER.format(name=name, class_name=class_name),
            requirements: REQUIREMENTS.format(name=module, file=requirements),
        }
    )
    option = f"-o script={shlex.quote(str(script))}"
    return Skeleton(
        [script, requirements],
        [
            f"refbench check-adapter worker {option}",
            f"refbench run worker scenes/test {option}",
            f"refbench run worker scenes/test {option} -o python=/path/to/your/environment/bin/python",
        ],
    )


def _names(name: str) -> tuple[str, str]:
    """`my-model` -> ("my_model", "MyModel")."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise AdapterError(
            f"{name!r} is not a valid adapter name; use letters, digits, - and _, and begin with a letter"
        )
    if keyword.iskeyword(name) or name.lower() in TAKEN or name.lower() in sys.stdlib_module_names:
        raise AdapterError(f"{name!r} is a Python keyword or would hide a module of this name; choose another name")
    words = [w for w in re.split(r"[-_]+", name) if w]
    return "_".join(words).lower(), "".join(w[:1].upper() + w[1:] for w in words)


def _write(files: dict[Path, str]) -> None:
    for file in files:
        if file.exists():
            raise AdapterError(
                f"{file} already exists and is not overwritten; choose another name, or another folder with --out"
            )
    for file, text in files.items():
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
