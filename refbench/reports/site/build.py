"""Builds the site into a folder, in one step."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from refbench._version import __version__
from refbench.datasets.verification import state_of
from refbench.errors import DatasetError, RefbenchError, RunError
from refbench.plugins.loading import available
from refbench.records import Question
from refbench.reports.ceilings import Ceiling, ceiling, masks_of_version
from refbench.reports.error_kinds import KINDS, MEANING
from refbench.reports.leaderboard import SHORT_NAMES, format_interval
from refbench.reports.published import UNKNOWN, published_results
from refbench.reports.recomputation import by_protocol, verify_folders
from refbench.reports.site import charts
from refbench.reports.site.runs import (
    SiteRun,
    SiteSplit,
    prediction_parts,
    read_run,
    read_split,
    sample_columns,
    split_columns,
    target_parts,
)
from refbench.reports.site.tables import PUBLISHED, all_tables
from refbench.runs.folder import RunFolder
from refbench.runs.timings import STAGES
from refbench.scoring.protocols.exact import REFBENCH, sample_iou
from refbench.storage.files import project_data, read_json, replace_folder
from refbench.storage.images import load_image, original_for_web
from refbench.storage.progress import Progress, silent

# What makes a folder a site that may be replaced.
SITE_FILE = "refbench-site.json"
COPY, LINK, NONE, OWN = "copy", "link", "none", "own"
IMAGES = (OWN, COPY, LINK, NONE)
# Datasets whose images are made by refbench, or come with installed packages under free licences.
OWN_DATASETS = ("scenes", "scenes-hurried", "snapshots")
STATIC = ("site.css", "site.js", "leaderboard.js", "samples.js", "run.js", "compare.js")
THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))

_PAGES = Environment(
    loader=PackageLoader("refbench.reports", "templates/site"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """A site that was built: its folder, its first page, and what is on it. `left_out` maps sources to the reason."""

    folder: Path
    index: Path
    runs: int
    samples: int
    published: int
    left_out: dict[str, str]


def build_site(
    folders: Iterable[Path],
    out: Path,
    *,
    predictions: Sequence[tuple[Path, str]] = (),
    perfect: Mapping[str, str] | None = None,
    images: str = OWN,
    progress: Progress = silent,
) -> Site:
    """Build the site; a site that is already in `out` is replaced in one step.

    Args:
        folders: folders with scored runs; subfolders are searched.
        predictions: predictions files or folders with their splits. They are scored under all protocols for which
            their split has published results.
        perfect: splits with their cleaned versions. The page of such a split shows the score of perfect masks.
        images: "own" copies the images of datasets that refbench makes itself and shows no others, "copy" copies all
            images, "link" refers to the files on this machine, and "none" shows no image. Most datasets have images
            under individual licences, so do not publish a site with copies of them.

    Raises:
        RunError: `out` is a folder with other content.
        DatasetError: a split of `perfect` is not built.
    """
    # Of a link, the folder that it leads to is replaced.
    out = Path(os.path.abspath(out)).resolve()
    if out.exists() and not (out / SITE_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is not a site of refbench and not empty; choose another folder for the site")
    published = published_results()
    runs, left_out = _read_runs(folders, predictions, progress)
    ceilings = {a: (b, ceiling(a, masks_of_version(a, b))) for a, b in (perfect or {}).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.new")
    staging.unlink(missing_ok=True) if staging.is_symlink() else shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        samples = _Writer(staging, published, runs, ceilings, images, progress).write()
        written = sorted(p.name for p in staging.iterdir())
        about = {"refbench_version": __version__, "files": written}
        (staging / SITE_FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")
        _keep_others(out, staging)
        replace_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Site(out, out / "index.html", len(runs), samples, len(published), left_out)


def _keep_others(old: Path, new: Path) -> None:
    """Copy what others have put into a site, such as .git, CNAME and the README of a Space."""
    try:
        written = set(read_json(old / SITE_FILE, RunError)["files"])
    except (RefbenchError, FileNotFoundError, KeyError, TypeError):
        return
    for path in old.iterdir() if old.is_dir() else ():
        if path.name in written or path.name == SITE_FILE or (new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _read_runs(
    folders: Iterable[Path], predictions: Sequence[tuple[Path, str]], progress: Progress
) -> tuple[list[SiteRun], dict[str, str]]:
    taken: set[str] = set()
    runs: list[SiteRun] = []
    left_out: dict[str, str] = {}
    found = [(place, by_protocol(verdicts), None) for place, verdicts in verify_folders(folders, progress).items()]
    sources: list[tuple[Path, Mapping[str, Any], str | None]] = [*found, *((p, {}, d) for p, d in predictions)]
    for done, (source, verdicts, dataset) in enumerate(sources):
        try:
            name = source.name if dataset is None else source.stem
            slug = slug_of(f"{source.parent.name}-{name}" if dataset is None else name, taken)
            runs.append(read_run(source, slug, dict(verdicts), dataset))
        except RefbenchError as error:
            left_out[str(source)] = str(error)
        progress("reading runs", done + 1, len(sources))
    return _with_different_names(runs), left_out


def _with_different_names(runs: Sequence[SiteRun]) -> list[SiteRun]:
    """Runs of one split that have the same name get the name of their folder, too."""
    names = Counter((run.address, run.name) for run in runs)
    return [
        run if names[run.address, run.name] == 1 else dataclasses.replace(run, name=f"{run.name} ({run.slug})")
        for run in runs
    ]


def slug_of(text: str, taken: set[str]) -> str:
    """A name for files and addresses: lower-case ASCII letters, digits and hyphens, different from those in `taken`.

    Example:
        >>> taken = set()
        >>> slug_of("Grounded-SAM (tiny)", taken), slug_of("grounded sam, tiny", taken)
        ('grounded-sam-tiny', 'grounded-sam-tiny-2')
    """
    # RefCOCO+ is not RefCOCO.
    plain = unicodedata.normalize("NFKD", text.replace("+", "-plus")).encode("ascii", "ignore").decode("ascii").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:80] or "x"
    number, name = 1, slug
    while name in taken:
        number += 1
        name = f"{slug}-{number}"
    taken.add(name)
    return name


class _Writer:
    """Writes the pages and their data into a folder."""

    def __init__(
        self,
        folder: Path,
        published: pd.DataFrame,
        runs: Sequence[SiteRun],
        ceilings: Mapping[str, tuple[str, Ceiling]],
        images: str,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.published = published
        self.runs = runs
        self.ceilings = ceilings
        self.images = images
        self.progress = progress
        self.tables = all_tables(published, runs, ceilings)
        taken: set[str] = set()
        self.dataset_slugs = {t["address"]: slug_of(t["address"], taken) for t in self.tables}
        self.systems = self._systems()

    def write(self) -> int:
        for name in STATIC:
            text = files("refbench.reports.site").joinpath("static", name).read_text(encoding="utf-8")
            self._text(f"assets/{name}", text)
        self._text("assets/icon.svg", ICON)
        self._data("leaderboard", {"splits": self.tables, "pages": self.dataset_slugs, "systems": self._system_slugs()})
        splits: dict[str, SiteSplit] = {}
        samples = 0
        for done, run in enumerate(self.runs):
            if run.diagnosis is not None:
                if run.address not in splits:
                    splits[run.address] = self._split(run)
                self._run_data(run, splits[run.address])
                samples += len(run.diagnosis.scores)
            self._run_page(run, splits.get(run.address) if run.diagnosis is not None else None)
            self.progress("runs", done + 1, len(self.runs))
        self._page("index.html", "leaderboard", depth=0)
        self._compare_page()
        self._dataset_pages()
        self._system_pages()
        return samples

    # Pages

    def _page(self, path: str, template: str, *, depth: int, **values: Any) -> None:
        page = _PAGES.get_template(f"{template}.html.j2").render(
            root="../" * depth, version=__version__, tables=self.tables, dataset_slugs=self.dataset_slugs,
            short=SHORT_NAMES, **values,
        )  # fmt: skip
        self._text(path, page)

    def _run_page(self, run: SiteRun, split: SiteSplit | None) -> None:
        diagnosis = run.diagnosis
        metrics = [
            (protocol, SHORT_NAMES.get(metric, metric) if protocol == REFBENCH.name else metric, format_interval(e))
            for protocol, summary in run.result.summaries.items()
            for metric, e in summary.metrics.items()
        ]
        values: dict[str, Any] = {"losses": "", "histogram": "", "precision": "", "slices": []}
        if diagnosis is not None:
            losses = [x for x in diagnosis.losses if x.samples]
            values["losses"] = charts.bars(
                [(x.kind.replace("_", " "), x.mean_iou, f"{x.mean_iou:.2f}") for x in losses],
                "Points of mean IoU that each kind of error costs", "points",
            )  # fmt: skip
            iou = sample_iou(diagnosis.scores)
            counts = np.histogram(iou, bins=20, range=(0, 1))[0].tolist()
            values["histogram"] = charts.histogram(counts, "Samples by their IoU")
            shares = [(t, 100 * float((iou > t).mean()) if len(iou) else 0.0) for t in THRESHOLDS]
            values["precision"] = charts.curve(shares, "Share of samples above each IoU threshold")
            values["slices"] = _slice_charts(diagnosis.slices)
        self._page(
            f"runs/{run.slug}.html", "run", depth=1, run=run, metrics=metrics, split=split, kinds=KINDS,
            meaning=MEANING, shown=diagnosis is not None, caveats=_caveats(run),
            timings=_timings(run), **values,
        )  # fmt: skip

    def _compare_page(self) -> None:
        # The best runs first, which are also the ones that are compared at first.
        means = [(run.diagnosis.metrics["mean_iou"], run) for run in self.runs if run.diagnosis is not None]
        shown = [run for _, run in sorted(means, key=lambda pair: -pair[0])]
        self._data(
            "runs",
            {
                "kinds": list(KINDS),
                "runs": [
                    {"slug": r.slug, "name": r.name, "split": self.dataset_slugs[r.address], "address": r.address}
                    for r in shown
                ],
            },
        )
        self._page("compare.html", "compare", depth=0, runs=shown)

    def _dataset_pages(self) -> None:
        self._page("datasets.html", "datasets", depth=0)
        for entry in self.tables:
            address = entry["address"]
            dataset = address.partition("/")[0]
            card = project_data("datasets") / dataset / "card.md"
            text = card.read_text(encoding="utf-8") if card.is_file() else ""
            runs = [run for run in self.runs if run.address == address]
            state = state_of(dataset) if text else ""
            self._page(
                f"datasets/{self.dataset_slugs[address]}.html", "dataset", depth=1, entry=entry, card=_blocks(text),
                state=state, runs=runs, unknown=UNKNOWN, ceiling=self._ceiling(address),
            )  # fmt: skip

    def _ceiling(self, address: str) -> dict[str, Any] | None:
        """What perfect masks reach on a split; None if it is not known."""
        if address not in self.ceilings:
            return None
        other, found = self.ceilings[address]
        rows = [
            charts.Interval(f"{s.dimension}: {s.label} ({s.samples})", e.value, e.low, e.high)
            for s in found.slices
            if (e := s.metrics["mean_iou"])
        ]
        metrics = [(SHORT_NAMES.get(m, m), format_interval(e)) for m, e in found.metrics.items()]
        return {
            "other": other,
            "samples": found.samples,
            "metrics": metrics,
            "chart": charts.intervals(rows, "Mean IoU of perfect masks by slice"),
        }

    def _systems(self) -> dict[str, list[dict[str, Any]]]:
        """All published figures by system, in the order of the names."""
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in self.tables:
            for table in entry["tables"]:
                for row in table["rows"]:
                    if row["origin"] == PUBLISHED:
                        line = {"address": entry["address"], "protocol": table["protocol"], **row}
                        found.setdefault(row["system"], []).append(line)
        return dict(sorted(found.items(), key=lambda item: item[0].lower()))

    def _system_slugs(self) -> dict[str, str]:
        taken: set[str] = set()
        return {name: slug_of(name, taken) for name in self.systems}

    def _system_pages(self) -> None:
        slugs = self._system_slugs()
        self._page("systems.html", "systems", depth=0, systems=self.systems, slugs=slugs)
        adapters = set(available("adapters"))
        for name, rows in self.systems.items():
            adapter = slug_of(name, set())
            self._page(
                f"systems/{slugs[name]}.html", "system", depth=1, name=name, rows=rows,
                adapter=adapter if adapter in adapters else "", contradictions=contradictions(rows),
            )  # fmt: skip

    # Data

    def _split(self, run: SiteRun) -> SiteSplit:
        split = read_split(run.address, self.dataset_slugs[run.address])
        columns = split_columns(split)
        columns["files"] = self._image_files(split)
        self._data(f"splits/{split.slug}", columns)
        for k, part in enumerate(target_parts(split)):
            self._data(f"splits/{split.slug}-{k}", part)
        return split

    def _run_data(self, run: SiteRun, split: SiteSplit) -> None:
        parts, errors = prediction_parts(run, split.samples)
        columns = sample_columns(run, split.samples)
        about = {"slug": run.slug, "name": run.name, "split": split.slug, "kinds": list(KINDS), "errors": errors}
        self._data(f"runs/{run.slug}", {**about, **columns})
        for k, part in enumerate(parts):
            self._data(f"runs/{run.slug}-{k}", part)

    def _image_files(self, split: SiteSplit) -> list[str]:
        """The address of each image from the root of the site; "" if it is not shown."""
        dataset = split.address.partition("/")[0]
        first: dict[str, Question] = {}
        for sample in split.samples:
            first.setdefault(sample.image_id, sample)
        mode = self.images
        if mode == OWN:
            mode = COPY if dataset in OWN_DATASETS else NONE
        out = []
        for number, image_id in enumerate(split.images):
            sample = first[image_id]
            if mode == NONE or not sample.image_path:
                out.append("")
            elif mode == LINK:
                there = Path(sample.image_path).is_file()
                out.append(os.path.relpath(sample.image_path, self.folder).replace(os.sep, "/") if there else "")
            else:
                out.append(self._copied(split.slug, number, sample))
        return out

    def _copied(self, slug: str, number: int, sample: Question) -> str:
        """Copy an image to the site; one that a browser would show differently is converted to JPEG."""
        original = original_for_web(sample.image_path)
        if original is not None:
            content, kind = original
        else:
            try:
                buffer = io.BytesIO()
                load_image(sample.image_path, sample.height, sample.width).save(buffer, "JPEG", quality=92)
                content, kind = buffer.getvalue(), "image/jpeg"
            except DatasetError:
                # The audit reports broken images; here the image is only not shown.
                return ""
        name = f"images/{slug}/{number}.{'png' if kind == 'image/png' else 'jpg'}"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name

    def _data(self, name: str, content: object) -> None:
        """Write data as a script, because pages that are opened from the file system cannot fetch files."""
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        self._text(f"data/{name}.js", f"refbenchData({json.dumps(name)},{text});\n")

    def _text(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")


def contradictions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Splits, variants and metrics for which the sources of a system state different values under one protocol."""
    found: dict[tuple[str, str, str, str], set[float]] = {}
    for row in rows:
        for metric, (value, _, _) in row["metrics"].items():
            found.setdefault((row["address"], row["protocol"], row["variant"], metric), set()).add(value)

    def listed(values: Iterable[float]) -> str:
        return ", ".join(f"{v:g}" for v in sorted(values))

    return [
        f"{address}, {variant or 'no variant stated'}, {metric} ({protocol}): {listed(values)}"
        for (address, protocol, variant, metric), values in found.items()
        if len(values) > 1
    ]


def _slice_charts(slices: Sequence[Any]) -> list[tuple[str, Any]]:
    by_dimension: dict[str, list[charts.Interval]] = {}
    for part in slices:
        e = part.metrics["mean_iou"]
        row = charts.Interval(f"{part.label} ({part.samples})", e.value, e.low, e.high)
        by_dimension.setdefault(part.dimension, []).append(row)
    return [(name, charts.intervals(rows, f"Mean IoU by {name}")) for name, rows in by_dimension.items()]


def _timings(run: SiteRun) -> list[tuple[str, float]]:
    """The seconds of each stage of a run, summed over its shards; empty if they are not known."""
    folder = RunFolder(run.source)
    if not folder.is_there or not folder.timings_path.is_file():
        return []
    try:
        rows = folder.timings()
    except RefbenchError:
        return []
    stages = [(stage, sum(row.stage_seconds(stage) for row in rows)) for stage in list(STAGES)[:-1]]
    return [("all", sum(row.seconds for row in rows)), *((name, seconds) for name, seconds in stages if seconds)]


def _caveats(run: SiteRun) -> list[tuple[str, str]]:
    return [(protocol, note) for protocol, summary in run.result.summaries.items() for note in summary.notes]


def _blocks(markdown: str) -> list[tuple[str, str]]:
    """The headings, paragraphs and list items of a dataset card, as (kind, text)."""
    out = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        for line in [block] if not block.lstrip().startswith(("*", "-")) else re.split(r"\n(?=[*-] )", block):
            text = " ".join(line.split())
            if text.startswith("#"):
                out.append(("heading", text.lstrip("# ")))
            elif text.startswith(("* ", "- ")):
                out.append(("item", text[2:]))
            elif text and not text.startswith("|"):
                out.append(("paragraph", text))
    return out


ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="#3566c0"/>'
    '<path d="M4 8a4 4 0 0 0 8 0z" fill="#fff"/></svg>\n'
)
