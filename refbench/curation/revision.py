"""Source and ledger become the next version of a dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

from refbench.curation.ledger import LEDGER_FILE, Ledger, apply_ledger, read_ledger
from refbench.datasets.builders.base import Built, source_of, staging_folder, write_dataset
from refbench.errors import DatasetError
from refbench.plugins.loading import available
from refbench.storage.manifest import Manifest, dataset_folder, parse_address, read_manifest, split_fingerprint
from refbench.storage.samples import load_objects, load_samples

BUILDER, BUILDER_VERSION = "curated", 1


def apply(
    address: str, ledger_path: Path, name: str = "", *, accept_edits: bool = False, replace: bool = False
) -> Manifest:
    """Build the split that a ledger makes of its source; returns the manifest of the new dataset.

    Needs neither model nor image nor network, and gives the same bytes from the same source and ledger.

    Args:
        name: of the new dataset; by default the source's with `-curated`.
        accept_edits: take a ledger whose rows were changed after refbench wrote them; the manifest says so.
        replace: also replace a dataset of this name that was made of another source.

    Raises:
        DatasetError: the ledger is of another source, damaged or edited, or the name is taken by a published dataset,
            by the source, or by one that was not made of this source split.
    """
    if ledger_path.is_dir():
        ledger_path = ledger_path / LEDGER_FILE
    ledger = read_ledger(ledger_path)
    dataset, split = parse_address(address)
    name = name or f"{dataset}-curated"
    if name == dataset:
        raise DatasetError(f"{name} is the source itself; choose another name with --as")
    if name in available("builders"):
        raise DatasetError(f"{name} is the name of a published dataset; choose another one with --as")
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
            f"{ledger_path} drops every expression of {address}: review what waits, or decide by another recipe"
        )
    with staging_folder(name) as staging:
        shutil.copyfile(ledger_path, staging / LEDGER_FILE)
        options = {"source": address, "source_fingerprint": ledger.fingerprint}
        return write_dataset(name, built, staging, options)


def _check_ledger(ledger: Ledger, path: Path, address: str, accept_edits: bool) -> None:
    """Raise DatasetError if a ledger is of another split or build, or was edited and nobody vouches for that."""
    if ledger.address != address or ledger.fingerprint != split_fingerprint(address):
        raise DatasetError(
            f"{path} is a ledger of {ledger.address} (fingerprint {ledger.fingerprint[:12]}...), not of this "
            f"build of {address} ({split_fingerprint(address)[:12]}...); build that source, or decide again"
        )
    if ledger.edited and not accept_edits:
        raise DatasetError(
            f"{path} was changed after refbench wrote it: its rows do not have the sha256 that it names. Get the "
            "original, make the decision in `refbench curate review`, or pass --accept-edits to vouch for the change"
        )


def _check_replaced(name: str, address: str, replace: bool) -> None:
    """Raise DatasetError if a dataset of this name exists that is no older version of the new one.

    `replace` allows any.
    """
    if replace or not dataset_folder(name).exists():
        return
    manifest = read_manifest(name)
    if manifest.builder.name != BUILDER or manifest.builder.options.get("source") != address:
        there = ", ".join(sorted(manifest.splits)) or "no splits"
        raise DatasetError(
            f"{name} is there already ({there}) and was not made of {address}; choose another name with --as, or pass "
            "--replace to lose it"
        )
