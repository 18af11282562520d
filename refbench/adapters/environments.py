"""Environments for workers: each is a virtual environment in `$REFBENCH_HOME/envs`, built once from a lock file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbench.errors import AdapterError
from refbench.storage.files import file_sha256, home, read_json, write_json

WORKERS = Path(__file__).parent / "workers"
# Written last: a folder without it was not finished.
MARK = "environment.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Environment:
    """A built environment: its name, interpreter, lock file, and the sha256 of the lock file."""

    name: str
    python: str
    version: str
    lock: str
    lock_sha256: str
    source: str


def recipes() -> dict[str, dict[str, Any]]:
    """The content of env.toml of each worker that is included in refbench, by the name of the worker."""
    found = {}
    for path in sorted(WORKERS.glob("*/env.toml")):
        found[path.parent.name] = tomllib.loads(path.read_text(encoding="utf-8"))
    return found


def environment_folder(name: str) -> Path:
    """The folder of an environment; raises AdapterError if the name is invalid."""
    if not NAME.fullmatch(name):
        raise AdapterError(
            f"{name!r} is not a valid environment name; use only lower-case letters, digits and the characters - _ ."
        )
    return home() / "envs" / name


def interpreter(name: str) -> Path:
    """The interpreter of a built environment.

    Raises:
        AdapterError: the environment does not exist, or its build was not finished.
    """
    folder = environment_folder(name)
    python = folder / "bin" / "python"
    if not (folder / MARK).is_file() or not python.exists():
        there = ", ".join(e.name for e in built_environments()) or "none"
        raise AdapterError(
            f"the environment {name!r} does not exist (existing environments: {there}); run `refbench env build "
            f"{name}`, or pass the path of an interpreter that has the required packages: -o python=PATH"
        )
    return python


def built_environments() -> list[Environment]:
    """All built environments, by name."""
    found = []
    for path in sorted((home() / "envs").glob(f"*/{MARK}")):
        content = read_json(path, AdapterError)
        if not isinstance(content, dict):
            raise AdapterError(
                f"{path} is damaged; run `refbench env remove {path.parent.name}`, then build the environment again"
            )
        found.append(Environment(**{k: str(content.get(k, "")) for k in Environment.__slots__}))
    return found


def build_environment(
    name: str, python: str = "", lock: Path | None = None, log: Callable[[str], None] = lambda _: None
) -> Environment:
    """Build the environment of a worker, or build it again if its lock file has changed.

    Args:
        name: a worker of refbench (see `refbench env list`), or any name together with your own `lock`.
        python: the interpreter to use; by default the version that the worker needs, as found on the PATH.
        lock: a requirements file with exact versions.

    Raises:
        AdapterError: the name is unknown, the interpreter does not exist, or pip fails; the message includes the last
            lines of the output of pip.
    """
    folder = environment_folder(name)
    wanted = recipes().get(name, {})
    if lock is not None and not lock.is_file():
        raise AdapterError(f"{lock} does not exist")
    lock = lock or WORKERS / name / "requirements.lock"
    if not lock.is_file():
        known = ", ".join(recipes())
        raise AdapterError(
            f"refbench has no lock file for {name!r} (expected {lock}); lock files exist for {known}; to use "
            "your own, pass --lock FILE"
        )
    digest = file_sha256(lock)
    built = next((e for e in built_environments() if e.name == name), None)
    same = built is not None and built.lock_sha256 == digest and (not python or shutil.which(python) == built.source)
    if built is not None and same and (folder / "bin" / "python").exists():
        log(f"{name} is built already")
        return built
    source = python or _find_python(name, str(wanted.get("python", "")))
    remove_environment(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log(f"making {folder} with {source}")
    _call([source, "-m", "venv", str(folder)], f"{source} cannot make a virtual environment")
    own = folder / "bin" / "python"
    lines = [line for line in lock.read_text().splitlines() if line.strip() and not line.startswith("#")]
    log(f"installing {lock.name} ({len(lines)} packages)")
    _call(
        [str(own), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r", str(lock)],
        f"pip cannot install {lock}",
    )
    version = _call([str(own), "-c", "import platform; print(platform.python_version())"], "it does not start").strip()
    made = Environment(name, str(own), version, str(lock), digest, shutil.which(source) or source)
    write_json(folder / MARK, {k: getattr(made, k) for k in Environment.__slots__})
    return made


def remove_environment(name: str) -> bool:
    """Remove an environment, even an unfinished one; False if it did not exist."""
    folder = environment_folder(name)
    if not folder.exists():
        return False
    shutil.rmtree(folder)
    return True


def _find_python(name: str, version: str) -> str:
    for candidate in (f"python{version}", "python3") if not version else (f"python{version}",):
        found = shutil.which(candidate)
        if found:
            return found
    raise AdapterError(
        f"the worker {name} needs Python {version}, which was not found on the PATH; install it (for "
        f"example with `uv python install {version}`), or pass its path: refbench env build {name} --python "
        "PATH"
    )


def _clean() -> dict[str, str]:
    # With PYTHONPATH, pip would count packages of this process as installed.
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _call(command: list[str], failure: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean())
    except OSError as error:
        raise AdapterError(f"{failure}: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise AdapterError(f"{failure}: {' | '.join(lines[-4:])[-1500:]}")
    return done.stdout
