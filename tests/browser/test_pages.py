"""The pages in a real browser: images load, links lead somewhere, nothing is fetched from outside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from events import GIVE_UP_SECONDS
from playwright.sync_api import sync_playwright

from refbench import run, score
from refbench.reports.comparison import compare
from refbench.reports.diagnosis import slice_differences
from refbench.reports.pages import write_comparison, write_report

pytestmark = pytest.mark.slow  # a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install the package chromium")
def test_report(embedded: Path, tmp_path: Path) -> None:
    folder = run("center", "snapshots/test", out=tmp_path / "runs" / "center").folder
    score(folder)
    report = write_report(folder)
    requests: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(1000 * GIVE_UP_SECONDS)
        page.on("request", lambda r: requests.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(report.as_uri())
        assert page.locator("h1").inner_text() == "center on snapshots/test"
        page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.wait_for_function("[...document.images].every(i => i.complete)")
        broken = page.evaluate("[...document.images].filter(i => i.naturalWidth === 0).length")
        shown = page.locator("figure").count()
        # Nothing sticks out of a narrow window either.
        page.set_viewport_size({"width": 420, "height": 900})
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert broken == 0
    assert shown >= 24
    assert errors == []
    assert overflow <= 0
    assert all(url.startswith(("file:", "data:")) for url in requests)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install the package chromium")
def test_comparison(embedded: Path, tmp_path: Path) -> None:
    folders = []
    for shift in ("2", "9"):
        folders.append(run("noisy-oracle", "scenes/val", options={"shift": shift}, out=tmp_path / shift).folder)
        score(folders[-1])
    found = compare(*folders)
    page_file = write_comparison(found, slice_differences(found), tmp_path / "compare.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(1000 * GIVE_UP_SECONDS)
        page.goto(page_file.as_uri())
        page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.wait_for_function("[...document.images].every(i => i.complete)")
        broken = page.evaluate("[...document.images].filter(i => i.naturalWidth === 0).length")
        pairs, pictures = page.locator(".pair").count(), page.locator(".pair img").count()
        page.set_viewport_size({"width": 420, "height": 900})
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert (broken, pairs, pictures) == (0, 25, 50)
    assert overflow <= 0
