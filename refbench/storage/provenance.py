"""What a result depends on, apart from data and model: code, packages, machine."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "pyarrow", "pycocotools", "Pillow", "torch", "transformers", "safetensors")


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can affect a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any]:
    """The commit, and whether files differ from it; empty unless `folder` is the root of a checkout.

    An installed copy may be in an environment inside an unrelated repository, whose commit is irrelevant.
    """
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return {}
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def code_sha256(thing: object) -> str:
    """The sha256 of the file that defines the class of an object, or of the class alone if there is no file."""
    kind = type(thing)
    try:
        file = inspect.getsourcefile(kind)
        content = Path(file).read_bytes() if file else inspect.getsource(kind).encode()
    except (OSError, TypeError):
        try:
            content = inspect.getsource(kind).encode()
        except (OSError, TypeError):
            return ""
    return hashlib.sha256(content).hexdigest()


def device_name(device: str) -> str:
    """The architecture and number of cores of the processor; for a CUDA device, its address and the visible devices."""
    if device.startswith("cuda"):
        return f"{device} ({os.environ.get('CUDA_VISIBLE_DEVICES', 'all visible devices')})"
    cores = os.cpu_count() or 1
    return f"{platform.machine()} CPU, {cores} cores"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
