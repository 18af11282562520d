"""`refbench doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from refbench._version import __version__
from refbench.cli.output import print_json, print_table, remark
from refbench.errors import RefbenchError
from refbench.masks import kernels
from refbench.masks.threads import available_cores
from refbench.plugins.loading import available
from refbench.plugins.requirements import missing_packages
from refbench.storage.files import home
from refbench.storage.manifest import read_manifest
from refbench.storage.weights import list_weights

PACKAGES = (
    "numpy", "pandas", "pyarrow", "pycocotools", "torch", "transformers", "onnxruntime",
    "opencv-python-headless", "datasets", "huggingface_hub", "ray", "hotcoco", "torchmetrics",
)  # fmt: skip
KINDS = ("adapters", "refiners", "checks")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Show what is installed and built here, and what is missing.

    Lists the packages that adapters, refiners and checks lack. Nothing is imported, downloaded or changed. Include the
    output in a bug report.

    \b
    Example:
      refbench doctor
      refbench doctor --json
    """
    found = _findings()
    if as_json:
        print_json(found)
        return
    print_table("system", ["what", "value"], [[k, str(v)] for k, v in found["system"].items()])
    print_table("packages", ["package", "version"], [[k, v or "not installed"] for k, v in found["packages"].items()])
    rows = [[dataset, ", ".join(about["splits"]) or about["error"]] for dataset, about in found["datasets"].items()]
    print_table("built datasets", ["dataset", "splits"], rows or [["none", "refbench build scenes"]])
    for kind in KINDS:
        lacking = [[name, ", ".join(missing)] for name, missing in found[kind].items() if missing]
        ready = len(found[kind]) - len(lacking)
        if lacking:
            print_table(f"{kind}: {ready} have their packages, {len(lacking)} do not", [kind[:-1], "lacks"], lacking)
        else:
            remark(f"{kind}: the packages of all {ready} are installed")
    for problem in found["problems"]:
        remark(problem)


def _findings() -> dict[str, Any]:
    problems: list[str] = []
    place = home()
    root = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(root).free / 1e9
    if not os.access(root, os.W_OK):
        problems.append(f"{root} cannot be written; set REFBENCH_HOME to another folder")
    if free < 2:
        problems.append(f"only {free:.1f} GB are free on the disk of {place}")
    if not kernels.COMPILED:
        problems.append("the kernels are not compiled: install a C++ compiler, then install refbench again")
    versions = {name: _version(name) for name in PACKAGES}
    found: dict[str, Any] = {
        "system": {
            "refbench": __version__,
            "Python": f"{platform.python_version()} ({sys.executable})",
            "platform": f"{platform.system()} {platform.release()}, {platform.machine()}",
            "kernels": "compiled" if kernels.COMPILED else "in Python, slow",
            "processor cores": available_cores(),
            "memory (GB)": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "GPUs": ", ".join(_gpus()) or "none",
            "home": str(place),
            "free disk (GB)": round(free, 1),
            "cache (GB)": round(_bytes_below(place / "cache") / 1e9, 2),
        },
        "packages": versions,
        "datasets": _datasets(place / "datasets"),
        "weights": [],
    }
    try:
        found["weights"] = [weights.name for weights in list_weights()]
    except RefbenchError as error:
        problems.append(str(error))
    for kind in KINDS:
        try:
            places = available(kind)
        except RefbenchError as error:
            problems.append(str(error))
            places = {}
        found[kind] = {name: missing_packages(where) for name, where in places.items()}
    if "isnet" not in found["weights"]:
        problems.append("the refiner isnet has no weights here: python -m refbench.curation.refiners.isnet_weights")
    return {**found, "problems": problems}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpus() -> list[str]:
    """The names of the NVIDIA GPUs that the driver lists, without importing torch."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        names.append(model[1] if model else path.parent.name)
    return names


def _bytes_below(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0


def _datasets(folder: Path) -> dict[str, dict[str, Any]]:
    out = {}
    for path in sorted(folder.glob("*/manifest.json")):
        name = path.parent.name
        try:
            out[name] = {"splits": sorted(read_manifest(name).splits), "error": ""}
        except RefbenchError as error:
            out[name] = {"splits": [], "error": str(error)}
    return out
