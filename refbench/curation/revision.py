"""Makes the cleaned version of a dataset from its source and a ledger."""

from __future__ import annotations

import shutil
from pathlib import Path

from refbench.curation.ledger import LEDGER_FILE, Ledger, read_ledger
from refbench.curation.ledger_application import apply_ledger
from refbench.datasets.builders.base import Built, source_of, staging_folder, write_dataset
from refbench.errors import DatasetError
from refbench.plugins.loading import available
from refbench.storage.manifest import Manifest, dataset_folder, parse_address, read_manifest, split_fingerprint
from refbench.storage.samples import load_objects, load_samples

BUILDER, BUILDER_VERSION = "curated", 1


def apply(
    address: str, ledger_path: Path, name: str = "", *, accept_edits: bool = False, replace: bool = False
) -> Manifest:
    """Build the cleaned split from its source and a ledger; returns the manifest of the new dataset.

    This needs no model, no images and no network, and gives the same bytes for the same source and ledger.

    Args:
        name: name of the new dataset; by default the name of the source with `-curated`.
        accept_edits: accept a ledger whose rows were changed after refbench wrote them; the manifest records this.
        replace: also replace a dataset of this name that was made from another source.

    Raises:
        DatasetError: the ledger is for another source, damaged or edited. It is also raised if the name belongs to a
            published dataset, to the source, or to a dataset that was not made from this source split.
    """
    if ledger_path.is_dir():
        ledger_path = ledger_path / LEDGER_FILE
    ledger = read_ledger(ledger_path)
    dataset, split = parse_address(address)
    name = name or f"{dataset}-curated"
    if name == dataset:
        raise DatasetError(f"{name} is the name of the source itself; choose another name with --as")
    if name in available("builders"):
        raise DatasetError(f"{name} is the name of a published dataset; choose another name with --as")
    _check_replaced(name, address, replace)
    _check_ledger(ledger, ledger_path, address, accept_edits)
    objects = load_objects(dataset)
    samples, left = apply_ledger(load_samples(address), objects, ledger, name, str(ledger_path))
    source = read_manifest(dataset)
    notes = [
        f"made of {address}, fingerprint {ledger.fingerprint}",
        f"by the recipe {ledger.recipe}, sha256 {ledger.recipe_sha256}",
        *(["the ledger was edited by hand"] if ledger.edited else []),
    ]
    built = Built(
        BUILDER, BUILDER_VERSION, {split: samples}, left, [source_of(ledger_path)],
        source.licence, notes,
        source.image_ids, source.annotation_ids,
    )  # fmt: skip
    if not samples:
        raise DatasetError(
            f"{ledger_path} drops every expression of {address}; review the undecided items, or decide with "
            "another recipe"
        )
    with staging_folder(name) as staging:
        shutil.copyfile(ledger_path, staging / LEDGER_FILE)
        options = {"source": address, "source_fingerprint": ledger.fingerprint}
        return write_dataset(name, built, staging, options)


def _check_ledger(ledger: Ledger, path: Path, address: str, accept_edits: bool) -> None:
    """Raise DatasetError if the ledger is for another split or build, or was edited and this is not accepted."""
    if ledger.address != address or ledger.fingerprint != split_fingerprint(address):
        raise DatasetError(
            f"{path} is a ledger of {ledger.address} (fingerprint {ledger.fingerprint[:12]}...), not of this "
            f"build of {address} ({split_fingerprint(address)[:12]}...); build the version that the ledger was "
            "made for, or run `refbench curate decide` again"
        )
    if ledger.edited and not accept_edits:
        raise DatasetError(
            f"{path} was edited after refbench wrote it: the sha256 of its rows does not match. Get the "
            "original ledger, make the change in `refbench curate review`, or pass --accept-edits to accept "
            "the edited rows"
        )


def _check_replaced(name: str, address: str, replace: bool) -> None:
    """Raise DatasetError if a dataset of this name exists that is not an older version of the new one.

    With `replace`, any dataset can be replaced.
    """
    if replace or not dataset_folder(name).exists():
        return
    manifest = read_manifest(name)
    if manifest.builder.name != BUILDER or manifest.builder.options.get("source") != address:
        there = ", ".join(sorted(manifest.splits)) or "no splits"
        raise DatasetError(
            f"the dataset {name} already exists ({there}) and was not made from {address}; choose another name "
            "with --as, or pass --replace to overwrite it"
        )
