"""Proposals: every refiner proposes a new mask for every mask; can be resumed after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refbench._version import __version__
from refbench.curation import surroundings
from refbench.curation.folder import Curation, load_items, open_curation
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.recipe import Recipe, RefinerChoice
from refbench.curation.refiners import base as refiner_base
from refbench.curation.refiners.base import propose as ask_refiner
from refbench.curation.tables import (
    proposals_table,
    read_shard,
)
from refbench.errors import AdapterError, DatasetError, RunError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.plugins.options import bind_options, construct
from refbench.records import Count, Proposal
from refbench.storage.files import read_record, write_table
from refbench.storage.images import image_sha256, load_image
from refbench.storage.locks import exclusive
from refbench.storage.manifest import of_one_build, parse_address
from refbench.storage.ownership import claim_folder, refuse_links
from refbench.storage.process_pool import map_in_processes
from refbench.storage.progress import Progress, silent
from refbench.storage.provenance import code_sha256, package_versions
from refbench.storage.secrets import HIDDEN, means_secret
from refbench.storage.sharding import cut

SHARD_MASKS = 48


@dataclass(frozen=True, slots=True)
class Proposed:
    """The result of a call of `propose`: number of proposals of each refiner, of failures, and of existing
    proposals.
    """

    folder: Path
    proposals: Mapping[str, int]
    failures: Mapping[str, int]
    first_errors: Mapping[str, str]
    resumed: int


@dataclass(frozen=True, slots=True)
class RefinerSetup:
    """How the proposals of a refiner were made: what refiner.json states and other commands read."""

    limit: Count | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""


def propose(
    folder: Path,
    *,
    refiners: Sequence[str] = (),
    options: Mapping[str, Mapping[str, str]] | None = None,
    device: str = "cpu",
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Proposed:
    """Run the refiners of the recipe on every mask. Existing proposals in the folder are not made again.

    Args:
        refiners: names of refiners; if empty, all refiners of the recipe.
        options: options of refiners by name, in addition to those in the recipe.
        limit: maximum number of images.
        workers: number of processes; if None, one per core. Refiners on a GPU use one process.

    Raises:
        RunError: the folder does not exist, contains proposals of another version of a refiner, or another process is
            writing to it.
        DatasetError: the split has no images, or the recipe has no such refiner.
    """
    curation = open_curation(folder)
    with exclusive(folder):
        return _propose(curation, refiners, options, device, limit, workers, progress)


def _propose(
    curation: Curation,
    refiners: Sequence[str],
    options: Mapping[str, Mapping[str, str]] | None,
    device: str,
    limit: int | None,
    workers: int | None,
    progress: Progress,
) -> Proposed:
    folder = curation.folder
    refuse_links(folder, ("proposals", *(f"proposals/{c.name}" for c in curation.recipe.refiners)))
    images = load_items(curation.address)[:limit]
    if not all(i.image_path for i in images):
        raise DatasetError(
            f"{curation.address} was built without images, which the refiners need; build it again with --images"
        )
    chosen = _chosen(curation.recipe, refiners, options or {})
    shards = plan_shards(images)
    seen = _images_sha256(images)
    for choice in chosen:
        _claim_refiner(curation, choice, device, limit, seen)
    jobs = [
        (str(folder), curation.address, choice, device, number, [i.image_id for i in shard])
        for choice in chosen
        for number, shard in enumerate(shards)
    ]
    waiting = [job for job in jobs if not _shard_path(folder, job[2].name, job[4]).exists()]
    total = sum(len(i.masks) for i in images) * len(chosen)
    sizes = [sum(len(i.masks) for i in shard) for shard in shards]
    done = resumed = total - sum(sizes[job[4]] for job in waiting)
    progress("proposals", done, total)
    for job, _ in zip(
        waiting, map_in_processes(_propose_shard, waiting, 1 if device != "cpu" else workers), strict=True
    ):
        done += sizes[job[4]]
        progress("proposals", done, total)
    return _tally(folder, chosen, len(shards), resumed)


def _chosen(recipe: Recipe, refiners: Sequence[str], options: Mapping[str, Mapping[str, str]]) -> list[RefinerChoice]:
    """The refiners of a recipe, or those of these names, with their options."""
    choices = [_with_options(c, options.get(c.name, {})) for c in recipe.refiners]
    unknown = sorted((set(refiners) | set(options)) - {c.name for c in choices})
    if unknown:
        known = ", ".join(c.name for c in choices) or "none"
        raise DatasetError(f"the recipe {recipe.name} has no refiner {unknown[0]!r}; its refiners are {known}")
    return [c for c in choices if not refiners or c.name in refiners]


def _tally(folder: Path, chosen: Sequence[RefinerChoice], shards: int, resumed: int) -> Proposed:
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    errors: dict[str, str] = {}
    for choice in chosen:
        for number in range(shards):
            for proposal in read_shard(_shard_path(folder, choice.name, number)):
                counts[choice.name] += 1
                if proposal.error:
                    failures[choice.name] += 1
                    errors.setdefault(choice.name, f"{proposal.mask_id}: {proposal.error}")
    return Proposed(folder, counts, failures, errors, resumed)


def plan_shards(images: Sequence[ImageItems]) -> list[list[ImageItems]]:
    """Whole images in their order; each shard except the last has at least SHARD_MASKS masks."""
    return cut(images, [len(image.masks) for image in images], SHARD_MASKS)


def read_proposals(folder: Path) -> dict[str, list[Proposal]]:
    """All proposals of a folder by mask, in the order of the recipe's refiners."""
    out: dict[str, list[Proposal]] = {}
    recipe = open_curation(folder).recipe
    for choice in recipe.refiners:
        for path in sorted((folder / "proposals" / choice.name).glob("part-*.parquet")):
            for proposal in read_shard(path):
                out.setdefault(proposal.mask_id, []).append(proposal)
    return out


def _with_options(choice: RefinerChoice, options: Mapping[str, str]) -> RefinerChoice:
    """The refiner with options from the command line added.

    Strings are converted to the types of its parameters.
    """
    if not options:
        return choice
    try:
        bound = bind_options(choice.name, load("refiners", choice.name), options, {})
    except AdapterError as error:
        raise DatasetError(str(error)) from None
    return dataclasses.replace(choice, options={**choice.options, **bound})


def check_proposals(curation: Curation, images: Sequence[ImageItems]) -> None:
    """Raise RunError unless every refiner of the recipe has made all its proposals, for the same images."""
    again = f"run `refbench curate propose {curation.folder}` to its end"
    limits = {}
    is_measured = curation.recipe.calibration.is_fitted or curation.recipe.trusted.on
    for choice in curation.recipe.refiners:
        setup = _setup(curation.folder, choice.name)
        if setup is None:
            raise RunError(f"{curation.folder} contains no proposals of {choice.name}; {again}")
        limits[choice.name] = setup.limit
        fitted = json.loads(json.dumps(_shown_options(choice), default=str))
        if is_measured and setup.options != fitted:
            raise RunError(
                f"the proposals of {choice.name} in {curation.folder} were made with the options "
                f"{setup.options}, but the recipe was calibrated with {fitted}; either add the "
                "options of the proposals to the recipe and calibrate again, or run `refbench curate propose` "
                "again without these options"
            )
        shards = plan_shards(images[: limits[choice.name]])
        missing = [k for k in range(len(shards)) if not _shard_path(curation.folder, choice.name, k).is_file()]
        if missing:
            raise RunError(
                f"{len(missing)} of the {len(shards)} shards of {choice.name} are missing in {curation.folder}; {again}"
            )
    if len(set(limits.values())) > 1:
        told = ", ".join(f"{n}: {'all' if k is None else k}" for n, k in limits.items())
        raise RunError(f"the refiners in {curation.folder} were run on different numbers of images ({told}); {again}")


def make_refiner(choice: RefinerChoice, device: str) -> Any:
    """Create a refiner with its options; if it has a parameter `device`, it gets the device."""
    factory = load("refiners", choice.name)
    parameters = inspect.signature(factory).parameters
    offered = {"device": device} if "device" in parameters and "device" not in choice.options else {}
    return construct(choice.name, factory, {**choice.options, **offered})


def refiner_weights(folder: Path, refiner: str) -> str | None:
    """The sha256 of the weights of a refiner in a curation folder; None if it has no proposals there."""
    setup = _setup(folder, refiner)
    return None if setup is None else setup.weights_sha256


def _setup(folder: Path, refiner: str) -> RefinerSetup | None:
    """How the proposals of a refiner were made; None if it has none."""
    path = folder / "proposals" / refiner / "refiner.json"
    if not path.is_file():
        return None
    return read_record(path, RefinerSetup, RunError, "run `refbench curate propose` again")


def _shown_options(choice: RefinerChoice) -> dict[str, Any]:
    """The options of a refiner as they are stored: without secrets."""
    return {name: HIDDEN if means_secret(name) else value for name, value in choice.options.items()}


def _images_sha256(images: Sequence[ImageItems]) -> str:
    """The sha256 of the ids and files of the images, because proposals belong to these pixels."""
    total = hashlib.sha256()
    for image in images:
        total.update(f"{image.image_id} {image_sha256(image.image_path)}\n".encode())
    return total.hexdigest()


def _claim_refiner(
    curation: Curation, choice: RefinerChoice, device: str, limit: int | None, images_sha256: str
) -> None:
    folder = curation.folder / "proposals" / choice.name
    refiner = make_refiner(choice, device)
    content = {
        "refiner": choice.name,
        "options": _shown_options(choice),
        "variants": choice.variants,
        "limit": limit,
        "fingerprint": curation.fingerprint,
        "images_sha256": images_sha256,
        "code_sha256": _code_of(refiner),
        "device": device if "device" in inspect.signature(load("refiners", choice.name)).parameters else "",
        "weights_sha256": str(getattr(refiner, "weights_sha256", "")),
        "packages": package_versions(),
        "refbench_version": __version__,
    }
    same = [name for name in content if name != "packages"]
    owner = f"setup of the refiner {choice.name}"
    claim_folder(folder / "refiner.json", content, same, owner, "remove that folder to make the proposals again")


def _code_of(refiner: Any) -> str:
    """The sha256 of the code that makes a proposal: the refiner, and the code that processes its answer."""
    shared = [Path(inspect.getfile(module)).read_bytes() for module in (refiner_base, surroundings)]
    return hashlib.sha256(code_sha256(refiner).encode() + b"".join(shared)).hexdigest()


def _shard_path(folder: Path, refiner: str, number: int) -> Path:
    return folder / "proposals" / refiner / f"part-{number:05d}.parquet"


_ShardJob = tuple[str, str, RefinerChoice, str, int, list[str]]
# One split and one refiner a process: a shard of the next one takes their place.
_LOADED: dict[str, Any] = {}


def _propose_shard(job: _ShardJob) -> int:
    """Write one shard of proposals of one refiner; returns its number."""
    folder, address, choice, device, number, image_ids = job
    if _LOADED.get("address") != (address, folder):
        _LOADED.clear()
        _LOADED["address"] = (address, folder)
        # Raises an error if the split was built again since the parent process read it.
        of_one_build(parse_address(address)[0], lambda: _load(Path(folder), address))
    if _LOADED.get("choice") != (choice, device):
        _LOADED["refiner"] = make_refiner(choice, device)
        _LOADED["choice"] = (choice, device)
    proposals: list[Proposal] = []
    for image_id in image_ids:
        proposals += _propose_image(_LOADED["refiner"], _LOADED["images"][image_id], choice.variants)
    write_table(_shard_path(Path(folder), choice.name, number), proposals_table(proposals))
    return number


def _load(folder: Path, address: str) -> None:
    open_curation(folder)
    _LOADED["images"] = {i.image_id: i for i in load_items(address)}


def _propose_image(refiner: Any, image: ImageItems, variants: int) -> list[Proposal]:
    if not image.masks:
        return []
    try:
        picture = np.asarray(load_image(image.image_path, image.height, image.width))
    except DatasetError as error:
        return [_failed(refiner.name, t, str(error)) for t in image.masks]
    ids, masks, categories = zip(*((t.mask_id, t.mask, t.category) for t in image.masks), strict=True)
    expressions = [[s.expression for s in t.samples] for t in image.masks]
    return ask_refiner(refiner, picture, ids, masks, variants, categories, expressions)


def _failed(refiner: str, target: TargetMask, error: str) -> Proposal:
    return Proposal(target.mask_id, refiner, 0, Mask.empty(*target.mask.size), 0.0, error=error[:300])
