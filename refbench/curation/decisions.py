"""`refbench curate audit`, `propose`, `decide`: a folder that goes from findings to proposals to a ledger.

The folder belongs to one build of one split and to one recipe; each step can be repeated and resumed, and gives the
same files again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refbench._version import __version__
from refbench.curation import surroundings
from refbench.curation.agreement import agree
from refbench.curation.checks.base import SEVERITIES, ImageCheck, ImageView, SplitCheck
from refbench.curation.items import ImageItems, TargetMask, items_of
from refbench.curation.ledger import EXPRESSION, LEDGER_FILE, MASK, Ledger, Row, rows_of, write_ledger
from refbench.curation.recipe import REVIEW, Recipe, RefinerChoice, parse_recipe
from refbench.curation.refiners import base as refiner_base
from refbench.curation.refiners.base import propose as ask_refiner
from refbench.curation.review.answers import REVIEW_FILE, Reviews, settle
from refbench.curation.tables import (
    audited_checks,
    proposals_table,
    read_decisions,
    read_findings,
    read_shard,
    write_decisions,
    write_findings,
)
from refbench.curation.verdicts import decide_expression, decide_masks
from refbench.datasets.overlaps import overlap
from refbench.errors import AdapterError, DatasetError, RefbenchError, RunError
from refbench.masks.mask import Mask
from refbench.masks.threads import available_cores
from refbench.plugins import available, bind_options, load
from refbench.records import Decision, Finding, Proposal
from refbench.storage.files import home, read_json, write_json, write_table
from refbench.storage.images import load_image
from refbench.storage.manifest import parse_address, split_fingerprint
from refbench.storage.progress import Progress, silent
from refbench.storage.provenance import code_sha256, package_versions
from refbench.storage.samples import load_objects, load_samples

CURATION_FILE = "curation.json"
SUMMARY_FILE = "audit.md"
SHARD_MASKS = 48
LEAKS = "image-leaks"
# Checks that need something of the user's; only a recipe that configures them has them.
OPTIONAL = ("expression-toxic",)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Curation:
    """A folder of curation: which build of which split, and by which recipe."""

    folder: Path
    address: str
    fingerprint: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found; `checks` are all that were asked, `left_out` those that need pictures there are none of."""

    folder: Path
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    left_out: tuple[str, ...]
    images: int
    masks: int
    expressions: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """What a call of `propose` did: proposals of each refiner, those that failed, and how many were there before."""

    folder: Path
    proposals: Mapping[str, int]
    failures: Mapping[str, int]
    first_errors: Mapping[str, str]
    resumed: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The decisions of a recipe and of people, and the ledger that was written."""

    folder: Path
    masks: Mapping[str, int]
    expressions: Mapping[str, int]
    waiting: int
    reviewed: int
    ledger: Path


def default_folder(address: str) -> Path:
    """`$REFBENCH_HOME/curation/<dataset>-<split>`."""
    dataset, split = parse_address(address)
    return home() / "curation" / f"{dataset}-{split}"


def open_curation(folder: Path) -> Curation:
    """The curation that a folder holds, its source checked.

    Raises:
        RunError: it is no folder of `refbench curate audit`, or its source was built anew and is another now.
    """
    path = folder / CURATION_FILE
    if not path.is_file():
        raise RunError(f"{folder} is no folder of a curation; run `refbench curate audit DATASET/SPLIT` first")
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
            f"{folder} is of another build of {address} (fingerprint {fingerprint[:12]}... there, {now[:12]}... now); "
            "build that source again, or choose another folder with --out"
        )
    return Curation(folder, address, fingerprint, parse_recipe(text, f"the recipe in {path}"))


def load_items(address: str) -> list[ImageItems]:
    """The images of a built split with all that is said about them."""
    samples = load_samples(address)
    images = {s.image_id for s in samples}
    objects = [o for o in load_objects(parse_address(address)[0]) if o.image_id in images]
    return items_of(samples, objects)


def audit(
    address: str,
    recipe: Recipe,
    *,
    out: Path | None = None,
    checks: Sequence[str] = (),
    with_images: bool = True,
    against: Sequence[str] = (),
    workers: int | None = None,
    progress: Progress = silent,
) -> Audited:
    """Run the checks over a split; writes findings.parquet and audit.md into the folder of a curation.

    Args:
        checks: names; all of them if there are none.
        with_images: False leaves out the checks that look at pictures.
        against: splits or lists of images that a model may have learned from; shared images are findings.
        workers: processes; as many as there are cores if None.

    Raises:
        DatasetError: the split is not built, or there is no check of that name.
        RunError: the folder belongs to another split, build or recipe.
    """
    images = load_items(address)
    _check_names(recipe)
    chosen = _make_checks(recipe, checks)
    has_pictures = with_images and all(i.image_path for i in images)
    used = {n: c for n, c in chosen.items() if has_pictures or not c.needs_images}
    folder = _claim(out or default_folder(address), address, recipe)
    by_image = [n for n, c in used.items() if isinstance(c, ImageCheck)]
    findings: list[Finding] = []
    jobs = [(some, by_image, recipe.checks, has_pictures) for some in _chunks(images, 20)]
    done = 0
    for job, found in zip(jobs, _parallel(_audit_images, jobs, workers), strict=True):
        findings += found
        done += len(job[0])
        progress("audit", done, len(images))
    for check in used.values():
        if isinstance(check, SplitCheck):
            findings += check.find_in_split(images)
    findings += [f for other in against for f in _leaks(address, other, images)]
    left_out = tuple(n for n in chosen if n not in used)
    names = (*used, *([LEAKS] if against else []))
    # What another call has found by other checks stays.
    earlier, looked = _earlier(folder)
    kept = [f for f in earlier if f.check not in names]
    write_findings(folder, [*findings, *kept], sorted({*looked, *names}))
    masks, expressions = sum(len(i.masks) for i in images), sum(len(i.samples) for i in images)
    result = Audited(folder, tuple(findings), names, left_out, len(images), masks, expressions)
    (folder / SUMMARY_FILE).write_text(_summary(address, result), encoding="utf-8")
    return result


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
    """Ask the refiners of the recipe for every mask; what is there already is not asked again.

    Args:
        refiners: names; all of the recipe if there are none.
        options: options of a refiner by its name, on top of the recipe's.
        limit: only so many images.
        workers: processes; as many as there are cores if None. Refiners on a GPU take one.

    Raises:
        RunError: no such folder, or one with proposals of another version of a refiner.
        DatasetError: the split has no images, or the recipe no refiner of that name.
    """
    curation = open_curation(folder)
    images = load_items(curation.address)[:limit]
    if not all(i.image_path for i in images):
        raise DatasetError(f"{curation.address} was built without images; build it with --images to propose masks")
    chosen = [_with_options(c, (options or {}).get(c.name, {})) for c in curation.recipe.refiners]
    unknown = sorted((set(refiners) | set(options or {})) - {c.name for c in chosen})
    if unknown:
        known = ", ".join(c.name for c in chosen) or "none"
        raise DatasetError(f"the recipe {curation.recipe.name} has no refiner {unknown[0]!r}; it has {known}")
    chosen = [c for c in chosen if not refiners or c.name in refiners]
    shards = plan_shards(images)
    for choice in chosen:
        _claim_refiner(curation, choice, device, limit)
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
    for job, _ in zip(waiting, _parallel(_propose_shard, waiting, 1 if device != "cpu" else workers), strict=True):
        done += sizes[job[4]]
        progress("proposals", done, total)
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    errors: dict[str, str] = {}
    for choice in chosen:
        for number in range(len(shards)):
            for proposal in read_shard(_shard_path(folder, choice.name, number)):
                counts[choice.name] += 1
                if proposal.error:
                    failures[choice.name] += 1
                    errors.setdefault(choice.name, f"{proposal.mask_id}: {proposal.error}")
    return Proposed(folder, counts, failures, errors, resumed)


def _earlier(folder: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Findings of earlier calls and the checks that were asked; none of a file that cannot be read."""
    try:
        return read_findings(folder), audited_checks(folder)
    except (RunError, DatasetError):
        return [], ()


def plan_shards(images: Sequence[ImageItems]) -> list[list[ImageItems]]:
    """Whole images in their order, at least SHARD_MASKS masks a shard but the last."""
    shards: list[list[ImageItems]] = [[]]
    masks = 0
    for image in images:
        if masks >= SHARD_MASKS:
            shards.append([])
            masks = 0
        shards[-1].append(image)
        masks += len(image.masks)
    return shards


def read_proposals(folder: Path) -> dict[str, list[Proposal]]:
    """All proposals of a folder by mask, in the order of the recipe's refiners."""
    out: dict[str, list[Proposal]] = {}
    recipe = open_curation(folder).recipe
    for choice in recipe.refiners:
        for path in sorted((folder / "proposals" / choice.name).glob("part-*.parquet")):
            for proposal in read_shard(path):
                out.setdefault(proposal.mask_id, []).append(proposal)
    return out


def decide(folder: Path, *, progress: Progress = silent) -> Decided:
    """From findings, proposals and reviews to decisions.parquet and ledger.parquet; the same files again each time.

    What waits for a person is treated as the recipe's `undecided` says, in the ledger; reviewed or not, the next call
    takes up what people have answered.

    Raises:
        RunError: no folder of a curation, or proposals of masks are missing.
    """
    curation = open_curation(folder)
    recipe = curation.recipe
    _check_names(recipe)
    images = load_items(curation.address)
    missing = sorted({*recipe.audit.review, *recipe.audit.drop} - set(audited_checks(folder)) - {LEAKS})
    if missing:
        raise RunError(
            f"{folder} was not audited by {', '.join(missing)}, which the recipe relies on; run `refbench curate audit "
            f"{curation.address} --out {folder}` to its end"
        )
    _check_proposals(curation, images)
    findings: dict[str, list[Finding]] = {}
    for finding in read_findings(folder):
        findings.setdefault(finding.item_id, []).append(finding)
    proposals = read_proposals(folder)
    masks: dict[str, Decision] = {}
    expressions: dict[str, Decision] = {}
    for number, image in enumerate(images):
        agreements = {t.mask_id: agree(t.mask, proposals.get(t.mask_id, ())) for t in image.masks}
        masks |= {d.item_id: d for d in decide_masks(image, findings, agreements, recipe)}
        for sample in image.samples:
            found = [*findings.get(sample.sample_id, ()), *findings.get(sample.image_id, ())]
            expressions[sample.sample_id] = decide_expression(sample, found, recipe)
        progress("decide", number + 1, len(images))
    write_decisions(folder, masks, expressions)
    return _write_ledger(curation, images, masks, expressions)


def settle_ledger(folder: Path) -> Decided:
    """Write the ledger anew with what people have answered since; the recipe's own decisions stay as they are."""
    curation = open_curation(folder)
    masks, expressions = read_decisions(folder)
    return _write_ledger(curation, load_items(curation.address), masks, expressions)


def _write_ledger(
    curation: Curation,
    images: Sequence[ImageItems],
    masks: Mapping[str, Decision],
    expressions: Mapping[str, Decision],
) -> Decided:
    folder, recipe = curation.folder, curation.recipe
    review_path = folder / REVIEW_FILE
    answers = Reviews(review_path).standing() if review_path.is_file() else {}
    settled = {i: d for i, a in answers.items() if (d := settle(a, recipe.reviewers)) is not None}
    unknown = sorted(set(answers) - set(masks) - set(expressions))
    if unknown:
        raise RunError(f"{review_path} holds an answer about {unknown[0]}, which {curation.address} does not have")

    def final(decision: Decision, undecided: str) -> Decision:
        if decision.item_id in settled:
            return settled[decision.item_id]
        if decision.action != REVIEW:
            return decision
        action = undecided
        return dataclasses.replace(decision, action=action, reason=f"nobody has reviewed it: {decision.reason}")

    final_masks = {i: final(d, recipe.masks.undecided) for i, d in masks.items()}
    final_expressions = {i: final(d, recipe.language.undecided) for i, d in expressions.items()}
    for d in final_masks.values():
        if d.action == "change" and d.mask is None:
            raise RunError(f"{folder}: the change of {d.item_id} brings no mask")
    rows = rows_of(images, final_masks, final_expressions, _weights(folder, recipe))
    path = folder / LEDGER_FILE
    write_ledger(path, Ledger(curation.address, curation.fingerprint, recipe.name, recipe.sha256, tuple(rows)))
    waiting = [i for i, d in (*masks.items(), *expressions.items()) if d.action == REVIEW and i not in settled]
    return Decided(folder, _counts(rows, MASK), _counts(rows, EXPRESSION), len(waiting), len(settled), path)


def _counts(rows: Sequence[Row], item: str) -> dict[str, int]:
    return dict(sorted(Counter(f"{r.action} ({r.stage})" for r in rows if r.item == item).items()))


def _weights(folder: Path, recipe: Recipe) -> dict[str, str]:
    out = {}
    for choice in recipe.refiners:
        path = folder / "proposals" / choice.name / "refiner.json"
        if path.is_file():
            out[choice.name] = str(read_json(path, RunError).get("weights_sha256", ""))
    return out


def _claim(folder: Path, address: str, recipe: Recipe) -> Path:
    """Write curation.json, or check that the one that is there is of the same source and recipe."""
    path = folder / CURATION_FILE
    content = {
        "source": address,
        "fingerprint": split_fingerprint(address),
        "recipe_sha256": recipe.sha256,
        "recipe": recipe.text,
        "refbench_version": __version__,
    }
    if path.exists():
        before = read_json(path, RunError)
        other = [k for k in ("source", "fingerprint", "recipe_sha256") if before.get(k) != content[k]]
        if other:
            raise RunError(
                f"{folder} belongs to another curation ({', '.join(other)} differ); choose another folder with --out, "
                "or remove it"
            )
        return folder
    write_json(path, content)
    return folder


def _make_checks(recipe: Recipe, wanted: Sequence[str]) -> dict[str, Any]:
    names = list(available("checks"))
    for name in (*wanted, *recipe.checks):
        if name not in names:
            load("checks", name)  # says which there are
    out = {}
    for name in names:
        # One that needs a network is not even imported where nobody asks for it.
        asked = name in wanted if wanted else (name not in OPTIONAL or name in recipe.checks)
        if asked:
            out[name] = _make(name, load("checks", name), recipe.checks.get(name, {}))
    return out


def _make(name: str, factory: Any, options: Mapping[str, Any]) -> Any:
    known = list(inspect.signature(factory).parameters)
    for key in options:
        if key not in known:
            raise DatasetError(f"{name} has no option {key!r}; it has: {', '.join(known) or 'none'}")
    try:
        return factory(**options)
    except RefbenchError:
        raise
    except Exception as error:  # somebody else's class: whatever it raises is told as its failure
        raise DatasetError(f"{name} cannot be set up: {type(error).__name__}: {error}") from error


def _audit_images(
    job: tuple[Sequence[ImageItems], Sequence[str], Mapping[str, Mapping[str, Any]], bool],
) -> list[Finding]:
    images, names, options, with_pictures = job
    checks = [_make(n, load("checks", n), options.get(n, {})) for n in names]
    out = []
    for items in images:
        view = ImageView(items, with_pictures)
        for check in checks:
            try:
                out += check.find(view)
            except RefbenchError:
                raise
            except Exception as error:
                raise RunError(
                    f"{check.code} failed on image {items.image_id}: {type(error).__name__}: {error}"
                ) from error
    return out


def _leaks(address: str, other: str, images: Sequence[ImageItems]) -> Iterator[Finding]:
    shared = set(overlap(address, other).image_ids)
    for image in images:
        if image.image_id in shared:
            yield Finding(LEAKS, "warning", "image", image.image_id, image.image_id, f"{other} has this image too")


def _summary(address: str, result: Audited) -> str:
    lines = [
        f"# Audit of {address}",
        "",
        f"{result.images} images, {result.masks} masks, {result.expressions} expressions: "
        f"{len(result.findings)} findings.",
        "",
        "| check | severity | findings | share of its items | for example |",
        "|---|---|---|---|---|",
    ]
    totals = {"mask": result.masks, "expression": result.expressions, "image": result.images}
    for name in result.checks:
        found = [f for f in result.findings if f.check == name]
        if found:
            share = len({f.item_id for f in found}) / max(1, totals[found[0].subject])
            examples = "<br>".join(_cell(f"{f.item_id}: {f.message}") for f in found[:_SHOWN])
            lines.append(f"| {name} | {found[0].severity} | {len(found)} | {share:.1%} | {examples} |")
        else:
            lines.append(f"| {name} | | 0 | | |")
    if result.left_out:
        lines += ["", f"Left out, since they need the pictures: {', '.join(result.left_out)}."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("\n", " ")):
        text = text.replace(sign, safe)
    return text


def worst_severity(findings: Sequence[Finding]) -> str:
    """The gravest severity among findings; "" if there are none."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default="")


def _with_options(choice: RefinerChoice, options: Mapping[str, str]) -> RefinerChoice:
    """A refiner's options with those of the command line, texts that become what its constructor takes."""
    if not options:
        return choice
    try:
        bound = bind_options(choice.name, load("refiners", choice.name), options, {})
    except AdapterError as error:
        raise DatasetError(str(error)) from None
    return dataclasses.replace(choice, options={**choice.options, **bound})


def _check_names(recipe: Recipe) -> None:
    """Raise DatasetError if a recipe relies on a check that there is not: a misspelt one protects nothing."""
    known = {*available("checks"), LEAKS}
    for name in (*recipe.audit.review, *recipe.audit.drop, *recipe.checks):
        if name not in known:
            raise DatasetError(
                f"the recipe {recipe.name} relies on the check {name!r}; there are {', '.join(sorted(known))}"
            )
    for choice in recipe.refiners:
        if choice.name not in available("refiners"):
            load("refiners", choice.name)  # says which there are


def _check_proposals(curation: Curation, images: Sequence[ImageItems]) -> None:
    """Raise RunError unless every refiner of the recipe has made all its proposals, for the same images."""
    again = f"run `refbench curate propose {curation.folder}` to its end"
    limits = {}
    for choice in curation.recipe.refiners:
        path = curation.folder / "proposals" / choice.name / "refiner.json"
        if not path.is_file():
            raise RunError(f"{curation.folder} holds no proposals of {choice.name}; {again}")
        limits[choice.name] = read_json(path, RunError).get("limit")
        shards = plan_shards(images[: limits[choice.name]])
        missing = [k for k in range(len(shards)) if not _shard_path(curation.folder, choice.name, k).is_file()]
        if missing:
            raise RunError(f"{curation.folder} lacks {len(missing)} of {len(shards)} shards of {choice.name}; {again}")
    if len(set(limits.values())) > 1:
        told = ", ".join(f"{n}: {'all' if k is None else k}" for n, k in limits.items())
        raise RunError(
            f"the refiners in {curation.folder} were asked for different numbers of images ({told}); {again}"
        )


def make_refiner(choice: RefinerChoice, device: str) -> Any:
    """A refiner with its options; one that has a parameter `device` gets it."""
    factory = load("refiners", choice.name)
    parameters = inspect.signature(factory).parameters
    offered = {"device": device} if "device" in parameters and "device" not in choice.options else {}
    return _make(choice.name, factory, {**choice.options, **offered})


def _claim_refiner(curation: Curation, choice: RefinerChoice, device: str, limit: int | None) -> None:
    folder = curation.folder / "proposals" / choice.name
    refiner = make_refiner(choice, device)
    content = {
        "refiner": choice.name,
        "options": dict(choice.options),
        "variants": choice.variants,
        "limit": limit,
        "fingerprint": curation.fingerprint,
        "code_sha256": _code_of(refiner),
        "device": device if "device" in inspect.signature(load("refiners", choice.name)).parameters else "",
        "weights_sha256": str(getattr(refiner, "weights_sha256", "")),
        "packages": package_versions(),
        "refbench_version": __version__,
    }
    path = folder / "refiner.json"
    if path.exists():
        before = read_json(path, RunError)
        other = [k for k in content if k != "packages" and before.get(k) != content[k]]
        if other:
            raise RunError(
                f"{folder} holds proposals of another {choice.name} ({', '.join(other)} differ); remove that folder to "
                "make them anew"
            )
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        return
    write_json(path, content)


def _code_of(refiner: Any) -> str:
    """sha256 over the code that makes a proposal: the refiner's own and what is made of its answer."""
    shared = [Path(inspect.getfile(module)).read_bytes() for module in (refiner_base, surroundings)]
    return hashlib.sha256(code_sha256(refiner).encode() + b"".join(shared)).hexdigest()


def _shard_path(folder: Path, refiner: str, number: int) -> Path:
    return folder / "proposals" / refiner / f"part-{number:05d}.parquet"


_ShardJob = tuple[str, str, RefinerChoice, str, int, list[str]]
# One split and one refiner a process: a shard of the next one takes their place.
_LOADED: dict[str, Any] = {}


def _propose_shard(job: _ShardJob) -> int:
    """Write one shard of one refiner; returns its number."""
    folder, address, choice, device, number, image_ids = job
    if _LOADED.get("address") != (address, folder):
        _LOADED.clear()
        _LOADED["address"] = (address, folder)
        _LOADED["images"] = {i.image_id: i for i in load_items(address)}
    if _LOADED.get("choice") != (choice, device):
        _LOADED["refiner"] = make_refiner(choice, device)
        _LOADED["choice"] = (choice, device)
    proposals: list[Proposal] = []
    for image_id in image_ids:
        proposals += _propose_image(_LOADED["refiner"], _LOADED["images"][image_id], choice.variants)
    write_table(_shard_path(Path(folder), choice.name, number), proposals_table(proposals))
    return number


def _propose_image(refiner: Any, image: ImageItems, variants: int) -> list[Proposal]:
    try:
        picture = np.asarray(load_image(image.image_path, image.height, image.width))
    except DatasetError as error:
        return [_failed(refiner.name, t, str(error)) for t in image.masks]
    return ask_refiner(refiner, picture, [t.mask_id for t in image.masks], [t.mask for t in image.masks], variants)


def _failed(refiner: str, target: TargetMask, error: str) -> Proposal:
    return Proposal(target.mask_id, refiner, 0, Mask.empty(*target.mask.size), 0.0, error=error[:300])


def _chunks(images: Sequence[ImageItems], size: int) -> Iterator[Sequence[ImageItems]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _parallel(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int | None) -> Iterator[Any]:
    """Results of jobs in their order, by processes where there is more than one worker."""
    count = min(workers or available_cores(), len(jobs))
    if count <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: a fork would copy the locks of threads that numba or torch may hold.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, jobs)
