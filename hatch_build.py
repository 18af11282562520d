"""Compiles the kernels in refbench/masks/native when a wheel is built; `python hatch_build.py` compiles them in place.

Without a compiler, the wheel has none of them, and refbench uses the same functions in Python, which are slow. With
REFBENCH_KERNELS=required, this is an error.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

ROOT = Path(__file__).parent
NATIVE = Path("refbench", "masks", "native")
# One file for all versions of Python from this one on.
STABLE_SINCE = "cp311"


def compile_kernels() -> Path:
    """Compile the kernels into the source tree; returns the path of the module from the root.

    Raises:
        CCompilerError, ExecError, PlatformError: there is no compiler, or it failed.
    """
    # Products and sums must be rounded one by one, so that numbers are the same on every processor.
    options = ["/O2", "/std:c++17", "/fp:precise"] if os.name == "nt" else ["-O3", "-std=c++17", "-ffp-contract=off"]
    extension = Extension(
        "refbench.masks._kernels",
        [str(NATIVE / "module.cpp")],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / NATIVE).glob("*.hpp"))],
        language="c++",
        extra_compile_args=options,
        py_limited_api=True,
    )
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = build_ext(
                Distribution({"name": "refbench", "packages": ["refbench.masks"], "ext_modules": [extension]})
            )
            command.inplace = True
            command.force = True
            command.build_temp = folder
            command.ensure_finalized()
            command.run()
            return Path(command.get_ext_filename(extension.name))
    finally:
        os.chdir(before)


class KernelsHook(BuildHookInterface[Any]):
    """Adds the compiled kernels to a wheel, whose name then states the platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        try:
            built = compile_kernels()
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            if os.environ.get("REFBENCH_KERNELS") == "required":
                raise
            self.app.display_warning(f"the kernels were not compiled, refbench will be slow: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"{STABLE_SINCE}-abi3-{platform}"
        if version != "editable":
            build_data["force_include"][str(ROOT / built)] = built.as_posix()


if __name__ == "__main__":
    sys.stdout.write(f"{compile_kernels()}\n")
