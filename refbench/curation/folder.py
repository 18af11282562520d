"""A curation folder: its split, its recipe, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refbench._version import __version__
from refbench.curation.checks.base import LEAKS
from refbench.curation.items import ImageItems, items_of
from refbench.curation.recipe import Recipe, parse_recipe
from refbench.errors import DatasetError, RunError
from refbench.plugins.loading import available, load
from refbench.storage.files import home, read_json
from refbench.storage.manifest import of_one_build, parse_address, split_fingerprint
from refbench.storage.ownership import OTHER_FOLDER, claim_folder
from refbench.storage.samples import load_objects, load_samples

CURATION_FILE = "curation.json"
SUMMARY_FILE = "audit.md"


@dataclass(frozen=True, slots=True)
class Curation:
    """A curation folder: the build of the split, and the recipe."""

    folder: Path
    address: str
    fingerprint: str
    recipe: Recipe


def default_folder(address: str) -> Path:
    """`$REFBENCH_HOME/curation/<dataset>-<split>`."""
    dataset, split = parse_address(address)
    return home() / "curation" / f"{dataset}-{split}"


def open_curation(folder: Path) -> Curation:
    """Open the curation in a folder, and check that its source split is unchanged.

    Raises:
        RunError: `refbench curate audit` did not write the folder, or its source split was built again and has changed.
    """
    path = folder / CURATION_FILE
    if not path.is_file():
        raise RunError(f"{folder} is not a curation folder; run `refbench curate audit DATASET/SPLIT` first")
    content = read_json(path, RunError)
    try:
        address, fingerprint, text = content["source"], content["fingerprint"], content["recipe"]
        if not all(isinstance(v, str) for v in (address, fingerprint, text)):
            raise TypeError
    except (KeyError, TypeError):
        raise RunError(f"{path} was not written by refbench; run `refbench curate audit` again") from None
    now = split_fingerprint(address)
    if now != fingerprint:
        raise RunError(
            f"{folder} was made for another build of {address} (fingerprint {fingerprint[:12]}..., local build: "
            f"{now[:12]}...); build that version again, or choose another folder with --out"
        )
    return Curation(folder, address, fingerprint, parse_recipe(text, f"the recipe in {path}"))


def load_items(address: str) -> list[ImageItems]:
    """The images of a built split with all their masks and expressions."""
    dataset, _ = parse_address(address)
    samples, annotated = of_one_build(dataset, lambda: (load_samples(address), load_objects(dataset)))
    images = {s.image_id for s in samples}
    return items_of(samples, [o for o in annotated if o.image_id in images])


def claim(folder: Path, address: str, recipe: Recipe) -> Path:
    """Write curation.json, or check that the existing one has the same source and recipe."""
    content = {
        "source": address,
        "fingerprint": split_fingerprint(address),
        "recipe_sha256": recipe.sha256,
        "recipe": recipe.text,
        "refbench_version": __version__,
    }
    same = ("source", "fingerprint", "recipe_sha256")
    claim_folder(folder / CURATION_FILE, content, same, "curation", OTHER_FOLDER)
    return folder


def check_names(recipe: Recipe) -> None:
    """Raise DatasetError if the recipe names an unknown check, because a misspelt check would have no effect."""
    known = {*available("checks"), LEAKS}
    for name in (*recipe.audit.review, *recipe.audit.drop, *recipe.checks):
        if name not in known:
            raise DatasetError(
                f"the recipe {recipe.name} requires the unknown check {name!r}; the checks are "
                f"{', '.join(sorted(known))}"
            )
    for choice in recipe.refiners:
        if choice.name not in available("refiners"):
            load("refiners", choice.name)  # says which there are
