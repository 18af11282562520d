"""The site in a real browser: tables, samples, comparison, hostile names, no network, accessibility."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.test_pages import CHROMIUM, FLAGS
from events import GIVE_UP_SECONDS
from playwright.sync_api import Browser, Page, sync_playwright

from refbench import load_samples, pair_counts, run, score, write_predictions
from refbench.errors import RunError
from refbench.reports.diagnosis import facts_of_samples
from refbench.reports.site.build import build_site, slug_of
from refbench.reports.slices import slices_of
from refbench.runs.folder import RunFolder
from refbench.scoring.protocols.exact import sample_iou

pytestmark = [
    pytest.mark.slow,  # a browser
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install the package chromium"),
]
HOSTILE = "<img src=x onerror=alert(1)>|=cmd()|\u202e\u05d0\u05d1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


class Visitor:
    """A page that remembers what was requested and what went wrong."""

    def __init__(
        self, browser: Browser, site: Path, width: int = 1400, scheme: str = "light", scripts: bool = True
    ) -> None:
        self.site = site
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=scripts,  # type: ignore[arg-type]
            accept_downloads=True,
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(1000 * GIVE_UP_SECONDS)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("dialog", lambda d: (self.errors.append(f"dialog {d.message}"), d.dismiss()))

    def go(self, address: str) -> Page:
        # A change of the part after # alone would not load the page again.
        self.page.goto("about:blank")
        self.page.goto(f"{self.site.as_uri()}/{address}")
        return self.page

    def check(self) -> None:
        assert self.errors == []
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in self.requests)


@pytest.fixture(scope="module")
def site(embedded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of three runs and a predictions file, one of them with hostile names, failures and missing samples."""
    folder = tmp_path_factory.mktemp("site")
    patch = pytest.MonkeyPatch()
    patch.setenv("REFBENCH_HOME", str(embedded_home))
    for name, options in (("small", {"dilate": "1"}), ("Small", {"dilate": "3", "swap": "0.2"})):
        score(run("noisy-oracle", "scenes/val", options=options, out=folder / "runs" / name).folder)
    score(run("center", "snapshots/test", out=folder / "runs" / "center").folder)
    samples = load_samples("snapshots/test")
    hostile = folder / f"{HOSTILE.replace('/', '')}.jsonl"
    write_predictions(hostile, [(s.sample_id, s.target, None) for s in samples[5:]])
    build_site([folder / "runs"], folder / "out", predictions=[(hostile, "snapshots/test")])
    patch.undo()
    return folder / "out"


def data_of(site: Path, name: str) -> Any:
    text = (site / "data" / f"{name}.js").read_text()
    return json.loads(text[text.index(",") + 1 : -len(");\n")])


def test_sort_filter_search_and_the_address(browser: Browser, site: Path) -> None:
    visitor = Visitor(browser, site)
    page = visitor.go("index.html#split=refcoco/val&protocol=caris-448")
    values = [float(v) for v in page.locator("#results tbody td:nth-child(3)").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    assert len(values) == 2
    page.click("#results th button:has-text('Mean IoU')")
    page.click("#results th button:has-text('Mean IoU')")
    assert page.locator("th[aria-sort='ascending']").inner_text().strip().startswith("Mean IoU")
    means = [float(v) for v in page.locator("#results tbody td:nth-child(4)").all_inner_texts()]
    assert means == sorted(means)
    page.fill("#search", "combined")
    assert page.locator("#results tbody tr").count() == 1
    address = page.url
    page.fill("#search", "nothing is like this")
    assert page.locator("#empty").is_visible()
    page.click("#reset")
    assert page.locator("#results tbody tr").count() == 2
    # The address restores the view, in another window.
    other = Visitor(browser, site)
    other.go(address.split("/out/")[1])
    assert other.page.locator("#results tbody tr").count() == 1
    assert other.page.input_value("#search") == "combined"
    assert other.page.locator("th[aria-sort='ascending']").count() == 1
    page.select_option("#split", "refcoco/testA")
    page.select_option("#protocol", "lavt-480")
    assert "75.82" in page.inner_text("#results")
    assert page.locator("#plot circle").count() > 3
    page.click("summary")
    page.check("#columns input[value=year]")
    assert "2022" in page.inner_text("#results")
    visitor.check()
    other.check()


def test_downloads_and_copies(browser: Browser, site: Path) -> None:
    visitor = Visitor(browser, site)
    page = visitor.go("index.html#split=snapshots/test")
    with page.expect_download() as download:
        page.click("#csv")
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert rows[0][:3] == ["rank", "group", "system"]
    assert len(rows) == 3
    # No cell is a formula for a spreadsheet.
    assert not [c for row in rows for c in row if re.match(r"[=+@\t]", c)]
    for button, start in (
        ("latex", "% snapshots/test, protocol refbench\n\\begin{tabular}"),
        ("markdown", "| rank | group | system |"),
    ):
        page.evaluate("window.copied = ''; navigator.clipboard.writeText = async (t) => { window.copied = t; }")
        page.click(f"#{button}")
        page.wait_for_function("window.copied !== ''")
        text = page.evaluate("window.copied")
        assert text.startswith(start)
    assert "\\|" in text
    assert "<img" not in text.replace("\\<", "")
    visitor.check()


def test_samples_are_three_clicks_away(browser: Browser, site: Path, embedded: Path) -> None:
    visitor = Visitor(browser, site)
    page = visitor.go("index.html")
    page.click("#results a:has-text('swap=0.2')")
    page.select_option("#kind", "wrong object")
    page.click(".row >> nth=0")
    page.wait_for_selector("dialog[data-ready]")
    columns, split = data_of(site, f"runs/{page.get_attribute('body', 'data-run')}"), data_of(site, "splits/scenes-val")
    wrong = [k for k, kind in enumerate(columns["kind"]) if kind >= 0 and columns["kinds"][kind] == "wrong_object"]
    first = min(wrong, key=lambda k: (columns["iou"][k], k))
    assert page.get_attribute("dialog", "data-ready") == split["ids"][first]
    assert page.inner_text("#view-title") == f"“{split['expression'][first]}”"
    # Keys: the next sample, layers, close.
    page.keyboard.press("ArrowRight")
    ordered = sorted(wrong, key=lambda k: (columns["iou"][k], k))
    page.wait_for_selector(f"dialog[data-ready='{split['ids'][ordered[1]]}']")
    page.keyboard.press("4")
    page.keyboard.press("5")
    assert "layers=itpdb" in page.url
    address = page.url
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert "sample=" not in page.url
    # The permalink opens the same sample with the same layers.
    other = Visitor(browser, site)
    other.go(address.split("/out/")[1])
    other.page.wait_for_selector(f"dialog[data-ready='{split['ids'][ordered[1]]}']")
    assert other.page.locator("dialog input:checked").count() == 5
    visitor.check()
    other.check()


def test_filters_agree_with_the_scores(browser: Browser, site: Path, embedded: Path) -> None:
    visitor = Visitor(browser, site)
    slug = next(p.stem for p in (site / "runs").glob("*.html") if "small" in p.stem)
    page = visitor.go(f"runs/{slug}.html#low=80&order=-iou")
    columns, split = data_of(site, f"runs/{slug}"), data_of(site, "splits/scenes-val")
    expected = sum(v >= 8000 for v in columns["iou"])
    assert page.inner_text("#count").startswith(f"{expected} of {len(columns['iou'])} samples")
    page.fill("#words", split["expression"][0].split()[0])
    word = split["expression"][0].split()[0].lower()
    fewer = [k for k, v in enumerate(columns["iou"]) if v >= 8000 and word in split["expression"][k].lower()]
    assert page.inner_text("#count").startswith(f"{len(fewer)} of ")
    page.fill("#words", "")
    page.fill("#low", "0")
    slice_ = split["slices"][0]
    page.select_option("#slice", f"{slice_['dimension']}: {slice_['label']}")
    shown = int(page.inner_text("#count").split(" of ")[0])
    named = re.search(rf">{re.escape(slice_['label'])} \((\d+)\)<", (site / "runs" / f"{slug}.html").read_text())
    assert named is not None
    assert shown == int(named[1])
    # The list holds only the rows that can be seen.
    assert page.locator(".row").count() < 40
    page.focus("#list")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[data-ready]")
    visitor.check()


def test_masks_are_drawn_as_they_are(browser: Browser, site: Path, embedded: Path) -> None:
    visitor = Visitor(browser, site)
    slug = next(p.stem for p in (site / "runs").glob("*.html") if "small" in p.stem)
    page = visitor.go(f"runs/{slug}.html")
    samples = load_samples("scenes/val")
    codes = [s.target.counts.decode() for s in samples[:40]]
    sizes = [[s.height, s.width] for s in samples[:40]]
    areas = page.evaluate(
        "([codes, sizes]) => codes.map((c, k) => { const p = pixelsOf(c, ...sizes[k]); let n = 0, at = 0; "
        "p.forEach((v, i) => { n += v; at += v * (i % 9973); }); return [n, at]; })",
        [codes, sizes],
    )
    for sample, (area, place) in zip(samples, areas, strict=False):
        flat = sample.target.to_array().ravel()
        assert area == sample.target.area
        assert place == sum(int(i) % 9973 for i in flat.nonzero()[0])
    bands = page.evaluate(
        "([codes, sizes]) => codes.map((c, k) => "
        "bandOf(pixelsOf(c, ...sizes[k]), ...sizes[k]).reduce((a, b) => a + b, 0))",
        [codes, sizes],
    )
    targets = [s.target for s in samples[:40]]
    assert bands == pair_counts(targets, targets)["boundary_union"].tolist()
    visitor.check()


def test_comparison_selects_and_shows_both(browser: Browser, site: Path) -> None:
    visitor = Visitor(browser, site)
    page = visitor.go("compare.html")
    page.wait_for_selector(".row")
    assert "Mean IoU" in page.inner_text("#about")
    whole = int(page.inner_text("#count").split()[0].replace(",", ""))
    box = page.locator("#scatter").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.wait_for_function("document.getElementById('count').textContent.includes('selection')")
    runs = {r["slug"]: data_of(site, f"runs/{r['slug']}") for r in data_of(site, "runs")["runs"]}
    chosen = [runs[page.input_value(f"#{n}")] for n in ("first", "second")]
    shown = int(page.inner_text("#count").split()[0].replace(",", ""))
    # About the quarter where A is low and B is high.
    about = sum(a <= 5000 and b >= 5000 for a, b in zip(chosen[0]["iou"], chosen[1]["iou"], strict=True))
    assert abs(shown - about) <= 3
    page.click("#clear")
    page.click(".row >> nth=0")
    page.wait_for_selector("dialog[data-ready]")
    assert page.locator("dialog .stage").count() == 2
    difference = max(abs(a - b) for a, b in zip(chosen[0]["iou"], chosen[1]["iou"], strict=True))
    assert f"{difference / 100:.1f}" in page.inner_text(".row >> nth=0")
    assert whole > 10
    visitor.check()


def test_nothing_from_the_data_is_run(browser: Browser, site: Path) -> None:
    visitor = Visitor(browser, site)
    pages = [p.relative_to(site).as_posix() for p in sorted(site.rglob("*.html"))]
    assert len(pages) > 60
    named = [p for p in pages if p.startswith("runs/")] + [
        "index.html#split=snapshots/test",
        "compare.html",
        "datasets/snapshots-test.html",
    ]
    for address in named:
        page = visitor.go(address)
        page.wait_for_load_state()
        assert page.locator("img[src='x']").count() == 0
    assert HOSTILE.split("|")[0] in visitor.go("index.html#split=snapshots/test").inner_text("#results")
    # The policy of the pages stops scripts that got into them by other ways.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=q onerror=\"window.stolen = 1\">')")
    page.wait_for_timeout(300)
    assert page.evaluate("window.stolen") is None
    visitor.errors = [e for e in visitor.errors if "Content Security Policy" not in e and "ERR_FILE_NOT_FOUND" not in e]
    visitor.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_accessibility_and_narrow_windows(browser: Browser, site: Path, width: int, scheme: str) -> None:
    visitor = Visitor(browser, site, width, scheme)
    slug = next(p.stem for p in (site / "runs").glob("*.html") if "small" in p.stem)
    addresses = [
        "index.html#split=refcoco/val", "index.html#split=scenes/val", f"runs/{slug}.html", "compare.html",
        "datasets.html", "datasets/refcoco-val.html", "systems.html", "systems/lavt.html",
    ]  # fmt: skip
    for address in addresses:
        page = visitor.go(address)
        page.wait_for_load_state()
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, address
        found = Axe().run(page, options={"preload": False})
        assert found.violations_count == 0, f"{address}\n{found.generate_report()}"
    page = visitor.go(f"runs/{slug}.html")
    page.click(".row >> nth=0")
    page.wait_for_selector("dialog[data-ready]")
    found = Axe().run(page, options={"preload": False})
    assert found.violations_count == 0, found.generate_report()
    visitor.check()


def test_without_scripts_the_tables_can_be_read(browser: Browser, site: Path) -> None:
    visitor = Visitor(browser, site, scripts=False)
    page = visitor.go("index.html")
    # The locator of texts leaves out what stands in <noscript>.
    page.click("a[href='datasets/refcoco-testa.html']")
    assert "75.82" in page.inner_text("main")
    page = visitor.go("datasets/snapshots-test.html")
    assert "center" in page.inner_text("main")
    run_page = next(p for p in (site / "runs").glob("*.html") if "small" in p.stem)
    page = visitor.go(f"runs/{run_page.name}")
    assert page.locator("svg.chart").count() >= 4
    visitor.check()


def test_figures_of_the_site_are_those_of_the_scores(site: Path, embedded: Path) -> None:
    entry = next(s for s in data_of(site, "leaderboard")["splits"] if s["address"] == "scenes/val")
    (table,) = entry["tables"]
    assert [row["origin"] for row in table["rows"]] == ["verified", "verified"]
    assert [row["rank"][0] for row in table["rows"]] == [1, 2]
    for row in table["rows"]:
        folder = site.parent / "runs" / ("small" if "swap" not in row["system"] else "Small")
        scored = score(folder)
        for metric, estimate in scored.summaries["refbench"].metrics.items():
            assert row["metrics"][metric] == [round(v, 4) for v in (estimate.value, estimate.low, estimate.high)]
        columns = data_of(site, f"runs/{row['run']}")
        order = {s: k for k, s in enumerate(scored.scores.sample_ids())}
        iou = sample_iou(scored.scores)
        ids = [s.sample_id for s in load_samples("scenes/val")]
        assert columns["iou"] == [round(10_000 * float(iou[order[i]])) for i in ids]
        parts = [data_of(site, f"runs/{row['run']}-{k}") for k in range(-(-len(ids) // 256))]
        masks = {p.sample_id: p.mask.counts.decode() for p in RunFolder(folder).predictions()}
        assert [code for part in parts for code in part] == [masks[i] for i in ids]


def test_missing_samples_are_told_apart(site: Path) -> None:
    entry = next(s for s in data_of(site, "leaderboard")["splits"] if s["address"] == "snapshots/test")
    row = next(r for r in entry["tables"][0]["rows"] if "img" in r["system"])
    assert (row["failures"], row["missing"]) == (5, 5)
    assert "5 failed (5 of them without a prediction)" in (site / "runs" / f"{row['run']}.html").read_text()


def test_a_folder_with_other_content_is_left_alone(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a site of refbench and not empty"):
        build_site([], tmp_path / "mine")
    built = build_site([], tmp_path / "site")
    assert built.runs == 0
    (tmp_path / "site" / "runs").mkdir()
    (tmp_path / "site" / "data" / "old.js").write_text("old")
    build_site([], tmp_path / "site")
    assert not (tmp_path / "site" / "data" / "old.js").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_runs_that_cannot_be_shown_say_why(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", "snapshots/test", out=tmp_path / "runs" / "a").folder
    score(folder)
    shutil.copytree(folder, tmp_path / "runs" / "b")
    shutil.rmtree(tmp_path / "runs" / "b" / "predictions")
    summary = tmp_path / "runs" / "c"
    shutil.copytree(folder, summary)
    content = json.loads((summary / "summary.json").read_text())
    content["protocols"]["refbench"]["metrics"]["mean_iou"]["value"] += 9
    (summary / "summary.json").write_text(json.dumps(content))
    built = build_site([tmp_path / "runs"], tmp_path / "site")
    entry = next(s for s in data_of(built.folder, "leaderboard")["splits"] if s["address"] == "snapshots/test")
    rows = entry["tables"][0]["rows"]
    assert [(row["origin"], row["reason"]) for row in rows] == [
        ("verified", ""), ("scored elsewhere", "it has no predictions"),
    ]  # fmt: skip
    assert [row["rank"] is None for row in rows] == [False, True]
    assert list(built.left_out) == [str(summary)]
    assert "mean_iou" in built.left_out[str(summary)]
    (page,) = (built.folder / "runs").glob("*-b.html")
    assert "The samples are not shown: the folder contains no predictions" in page.read_text()


def test_predictions_stand_under_every_rule_and_below_the_ceiling(photos: Path, tmp_path: Path) -> None:
    samples = load_samples("refcoco/val")
    path = tmp_path / "mine.jsonl"
    write_predictions(path, [(s.sample_id, s.target, None) for s in samples[1:]])
    built = build_site(
        [], tmp_path / "site", predictions=[(path, "refcoco/val")], perfect={"refcoco+/val": "refcoco/val"}
    )
    entry = next(s for s in data_of(built.folder, "leaderboard")["splits"] if s["address"] == "refcoco/val")
    for table in entry["tables"]:
        mine = [row for row in table["rows"] if row["run"]]
        if not table["comparable"]:
            assert mine == []
            continue
        expected = score(path, "refcoco/val", protocols=[table["protocol"]]).summaries[table["protocol"]]
        assert {m: v[0] for m, v in mine[0]["metrics"].items()} == {
            m: round(e.value, 4) for m, e in expected.metrics.items()
        }
        assert mine[0]["missing"] == 1
    assert len(entry["tables"]) > 5
    page = (built.folder / "datasets" / "refcoco-plus-val.html").read_text()
    assert "What models can reach" in page
    assert "refcoco/val reach these scores" in page


def test_names_that_differ_only_in_case_and_very_long_ones() -> None:
    taken: set[str] = set()
    made = [slug_of(name, taken) for name in ("LAVT", "lavt", "Lavt", "x" * 500, "x" * 501, "模型", "")]
    assert len(set(made)) == len(made)
    assert all(len(name) < 90 and re.fullmatch(r"[a-z0-9-]+", name) for name in made)
    assert slug_of("refcoco+/val", set()) != slug_of("refcoco/val", set())


def test_limited_runs_stand_below_and_slices_are_of_all_samples(embedded: Path, tmp_path: Path) -> None:
    for name, limit in (("a", 20), ("b", None), ("c", None)):
        score(run("noisy-oracle", "snapshots/test", limit=limit, out=tmp_path / "runs" / name).folder)
    built = build_site([tmp_path / "runs"], tmp_path / "site")
    entry = next(s for s in data_of(built.folder, "leaderboard")["splits"] if s["address"] == "snapshots/test")
    rows = entry["tables"][0]["rows"]
    assert [row["origin"] for row in rows] == ["verified", "verified", "limited"]
    assert [row["rank"] is None for row in rows] == [False, False, True]
    assert len({row["system"] for row in rows}) == 3
    split = data_of(built.folder, "splits/snapshots-test")
    inside = [sum(bin(b).count("1") for b in base64.b64decode(s["bits"])) for s in split["slices"]]
    facts = facts_of_samples(
        "snapshots/test", [s.sample_id for s in load_samples("snapshots/test")],
        np.array([s.target.area for s in load_samples("snapshots/test")]),
    )  # fmt: skip
    assert inside == [int(part.rows.sum()) for part in slices_of(facts)]


def test_what_others_put_into_a_site_stays(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        built = build_site([], tmp_path / "link")
        assert built.folder == tmp_path / "real"
        (tmp_path / "real" / "CNAME").write_text("example.org")
        (tmp_path / "real" / ".git").mkdir(exist_ok=True)
        (tmp_path / "real" / ".git" / "HEAD").write_text("ref")
    assert (tmp_path / "real" / "CNAME").read_text() == "example.org"
    assert (tmp_path / "real" / ".git" / "HEAD").read_text() == "ref"
    assert (tmp_path / "link").is_symlink()
    assert {p.name for p in tmp_path.iterdir() if "site" not in p.name and "home" not in p.name} == {"real", "link"}
