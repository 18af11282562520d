"""The review page in a real browser: by keyboard alone, by two people, with edits, reloads and a killed server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from events import GIVE_UP_SECONDS, wait_until

from refbench.curation.decisions import decide
from refbench.curation.folder import load_items
from refbench.curation.ledger import read_ledger
from refbench.curation.proposals import read_proposals
from refbench.curation.review.answers import REVIEW_FILE, Reviews
from refbench.curation.review.queue import queue_of
from refbench.curation.tables import read_decisions

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs /usr/bin/chromium (apt install chromium)"),
]


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page's address and the process of `refbench curate review`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "refbench", "curate", "review", str(folder), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read() if process.stderr else ""
        wait_until_open(address)
        yield address, process
    finally:
        process.kill()
        process.wait()


def wait_until_open(address: str) -> None:
    port = int(address.split(":")[2].split("/")[0])

    def is_open() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    wait_until(is_open)


@contextlib.contextmanager
def browser() -> Iterator[object]:
    profile = tempfile.mkdtemp()
    with playwright.sync_playwright() as p:
        context = p.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, headless=True, viewport={"width": 1280, "height": 800}
        )
        context.set_default_timeout(1000 * GIVE_UP_SECONDS)
        try:
            yield context
        finally:
            context.close()
            shutil.rmtree(profile, ignore_errors=True)


def opened(context, address: str, reviewer: str):  # type: ignore[no-untyped-def]
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("#queue button.here")
    page.focus("#reviewer")
    page.keyboard.press("Control+a")
    page.keyboard.type(reviewer)
    page.keyboard.press("Enter")
    # Another person has other items before them: the page loads its queue again.
    page.evaluate("() => line")
    page.faults = faults
    return page


def press(page, key: str) -> None:  # type: ignore[no-untyped-def]
    """Press a key that answers, and wait until the page has moved on."""
    before = page.text_content("#item"), page.text_content("#status")
    page.keyboard.press(key)
    wait_until(lambda: str(page.text_content("#status")).startswith("saved") and said(page) != before)


def said(page) -> tuple[str, str]:  # type: ignore[no-untyped-def]
    return page.text_content("#item"), page.text_content("#status")


def seek_proposals(page) -> str:  # type: ignore[no-untyped-def]
    """Go on to an item with proposals; returns its id."""
    for _ in range(200):
        if page.locator("#choices li").count() >= 4:
            return shown(page)
        before = shown(page)
        page.keyboard.press("n")
        wait_until(lambda before=before: shown(page) != before)  # type: ignore[misc]
    raise AssertionError("no item has proposals")


def shown(page) -> str:  # type: ignore[no-untyped-def]
    return str(page.text_content("#item")).split(" · ")[0]


def test_a_keyboard_is_enough(curation: Path) -> None:
    masks, _ = read_decisions(curation)
    with served(curation) as (address, _), browser() as context:
        page = opened(context, address, "anna")
        items = []
        for key in ("s", "d", "a"):
            items.append(shown(page))
            press(page, key)
        # Undo the last answer, and give another one.
        page.keyboard.press("u")
        wait_until(lambda: str(page.text_content("#status")).startswith("taken back"))
        assert shown(page) == items[2]
        press(page, "s")
        # The second expression-less item: help, map, zoom and hiding answer to keys and change nothing.
        for key in ("m", "z", "h", "h", "?", "Escape"):
            page.keyboard.press(key)
        page.screenshot(path=str(curation / "page.png"))
        assert not page.faults
    standing = Reviews(curation / REVIEW_FILE).standing()
    assert [standing[i][0].action for i in items] == ["keep", "drop", "keep"]
    assert all(len(a) == 1 and a[0].reviewer == "anna" for a in standing.values())
    decided = decide(curation)
    assert decided.reviewed == 3
    rows = read_ledger(curation).by_id()
    assert [rows[i].action for i in items] == ["kept", "dropped", "kept"]
    assert {(rows[i].stage, rows[i].reviewer) for i in items} == {("review", "anna")}
    assert all(masks[i].action == "review" for i in items)


def test_proposals_brush_and_polygon_become_the_mask(curation: Path) -> None:
    proposals = read_proposals(curation)
    with served(curation, "--all") as (address, _), browser() as context:
        page = opened(context, address, "ben")
        first = seek_proposals(page)
        page.keyboard.press("3")
        wait_until(lambda: page.locator("#choices li:nth-child(3).here").count() == 1)
        chosen = str(page.text_content("#choices li.here")).split(" ")[0]
        press(page, "Enter")
        second = seek_proposals(page)
        page.keyboard.press("1")
        page.keyboard.press("e")
        box = page.locator("#canvas").bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 160, middle[1] + 120, steps=8)
        page.mouse.up()
        page.screenshot(path=str(curation / "brush.png"))
        press(page, "a")
        third = seek_proposals(page)
        page.keyboard.press("1")
        page.keyboard.press("p")
        for dx, dy in ((-150, -120), (150, -120), (150, 120), (-150, 120)):
            page.mouse.click(middle[0] + dx, middle[1] + dy)
        page.keyboard.press("Enter")
        press(page, "Enter")
        assert not page.faults
    standing = Reviews(curation / REVIEW_FILE).standing()
    targets = {t.mask_id: t for image in load_items("scenes-hurried/val") for t in image.masks}
    assert standing[first][0].mask in [p.mask for p in proposals[first] if p.refiner == chosen]
    assert standing[first][0].origin == chosen
    painted, clicked = standing[second][0].mask, standing[third][0].mask
    assert painted is not None
    assert clicked is not None
    assert painted.union(targets[second].mask) == painted
    assert painted.area > targets[second].mask.area
    assert (standing[second][0].origin, standing[third][0].origin) == ("brush", "polygon")
    pixels = clicked.to_array() & ~targets[third].mask.to_array()
    rows, columns = np.nonzero(clicked.to_array())
    assert clicked.union(targets[third].mask) == clicked
    assert pixels.any()
    # What was clicked is a rectangle that holds the object's middle.
    assert clicked.to_array()[int(np.median(rows)), int(np.median(columns))]


def test_two_reviewers_disagree_and_a_third_settles_it(curation: Path) -> None:
    with served(curation) as (address, _), browser() as context:
        anna, ben = opened(context, address, "anna"), opened(context, address, "ben")
        item = shown(anna)
        assert shown(ben) == item
        press(anna, "s")
        press(ben, "d")
        # It comes back, on top, marked.
        anna.reload()
        anna.wait_for_selector("#queue button.disagreed")
        wait_until(lambda: "1 disagreed" in str(anna.text_content("#progress")))
        assert item.endswith(str(anna.text_content("#queue button:first-child span")))
        carl = opened(context, address, "carl")
        wait_until(lambda: shown(carl) == item)
        assert "anna: keep" in str(carl.text_content("#findings"))
        press(carl, "d")
        wait_until(lambda: "1 of" in str(carl.text_content("#progress")))
    decide(curation)
    row = read_ledger(curation).by_id()[item]
    assert (row.action, row.reviewer) == ("dropped", "ben, carl")


def test_text_of_a_dataset_is_text(curation: Path) -> None:
    with served(curation) as (address, _), browser() as context:
        page = opened(context, address, "<b>eve</b>")
        press(page, "s")
        page.reload()
        page.wait_for_selector("#queue button.here")
        page.evaluate(
            "() => { item.expressions = [{sample_id: 'x', text: '<img src=x onerror=window.broken=1>'}]; showSide(); }"
        )
        assert "<img" in str(page.text_content("#expressions"))
        assert page.locator("#expressions img").count() == 0
        assert page.evaluate("() => window.broken") is None


def test_an_answer_survives_a_server_that_is_killed(curation: Path) -> None:
    with browser() as context:
        with served(curation) as (address, process):
            page = opened(context, address, "anna")
            press(page, "s")
            item = shown(page)
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.keyboard.press("d")
            wait_until(lambda: str(page.text_content("#status")).startswith("not saved yet"))
        standing = Reviews(curation / REVIEW_FILE).standing()
        assert len(standing) == 1
        assert item not in standing
        # Served again, from the same port: what waited in the browser is sent.
        with served(curation) as (address, _):
            page.goto(address)
            wait_until(lambda: item in Reviews(curation / REVIEW_FILE).standing())
    assert [a.action for a in Reviews(curation / REVIEW_FILE).standing()[item]] == ["drop"]


def test_a_thousand_items_do_not_slow_it_down(hurried: Path, curation: Path) -> None:
    masks, expressions = read_decisions(curation)
    queue = queue_of(masks, expressions, {}, 1, everything=True)
    assert len(queue) > 600
    with served(curation, "--all") as (address, _), browser() as context:
        page = opened(context, address, "anna")
        # Make it a thousand, as the page sees it.
        page.evaluate(
            """() => { const one = call; call = async (path, content) => { const told = await one(path, content);
            const shown = told.items, n = shown && shown.length;
            while (path === 'queue' && shown.length < 1000) shown.push({...shown[shown.length % n]});
            return told; }; return loadQueue(); }"""
        )
        assert page.locator("#queue button").count() == 1000
        page.evaluate(
            """() => { window.changed = 0; new MutationObserver(seen => window.changed += seen.length).observe(
            document.body, {subtree: true, childList: true, attributes: true, characterData: true}); }"""
        )
        for _ in range(6):
            press(page, "s")
        # An answer touches what it is about, not the thousand others.
        assert 0 < page.evaluate("() => window.changed") < 6 * 100
        assert not page.faults


def test_an_answer_loads_no_queue_and_the_next_item_is_there(curation: Path) -> None:
    with served(curation, "--all") as (address, _), browser() as context:
        asked: list[str] = []
        page = opened(context, address, "anna")
        page.on("request", lambda r: asked.append(r.url.split("/api/")[-1]) if "/api/" in r.url else None)
        seen = []
        for _ in range(10):
            # What comes next is asked for while the item is looked at, not when it is answered.
            upcoming = page.evaluate("() => items[nextOpen()].item_id")
            wait_until(lambda upcoming=upcoming: page.evaluate("(id) => prepared.has(id)", upcoming))  # type: ignore[misc]
            seen.append(shown(page))
            press(page, "s")
            assert shown(page) == upcoming
        assert not [a for a in asked if a.startswith("queue")]
        assert len([a for a in asked if a.startswith("answer")]) == 10
        assert "s an item" in str(page.text_content("#progress"))
        assert not page.faults
    standing = Reviews(curation / REVIEW_FILE).standing()
    assert sorted(standing) == sorted(seen)
    assert all(a.seconds is not None and a.seconds >= 0 for answers in standing.values() for a in answers)


def test_many_items_at_once(curation: Path) -> None:
    proposals = read_proposals(curation)
    with served(curation, "--all") as (address, _), browser() as context:
        page = opened(context, address, "ben")
        page.keyboard.press("g")
        page.wait_for_selector(".tile")
        names = [str(page.locator(".tile").nth(k).get_attribute("title")) for k in range(page.locator(".tile").count())]
        assert len(names) > 3
        page.screenshot(path=str(curation / "grid.png"))
        page.keyboard.press("y")
        for _ in range(2):
            page.locator(".tile").nth(1).click()
        page.locator(".tile").nth(2).click()
        marks = page.evaluate("() => grid.tiles.map((tile) => tile.mark)")
        assert marks == ["change", "", "keep", *["change"] * (len(names) - 3)]
        page.keyboard.press("Enter")
        wait_until(lambda: str(page.text_content("#status")) == f"saved: {len(names) - 1} items")
        following = [
            str(page.locator(".tile").nth(k).get_attribute("title")) for k in range(page.locator(".tile").count())
        ]
        assert not set(following) & set(names)
        page.keyboard.press("g")
        assert page.locator("#grid").is_hidden()
        assert not page.faults
    standing = Reviews(curation / REVIEW_FILE).standing()
    assert sorted(standing) == sorted([names[0], *names[2:]])
    assert standing[names[2]][0].action == "keep"
    taken = standing[names[0]][0]
    assert (taken.action, taken.mask in [p.mask for p in proposals[names[0]]]) == ("change", True)


def test_clicks_zoom_and_a_narrow_window(curation: Path) -> None:
    with served(curation, "--all") as (address, _), browser() as context:
        page = opened(context, address, "carl")
        item_id = seek_proposals(page)
        box = page.locator("#canvas").bounding_box()
        x, y = round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)
        before = page.evaluate("([x, y]) => place({ clientX: x, clientY: y })", [x, y])
        page.mouse.move(x, y)
        page.mouse.wheel(0, -400)
        wait_until(lambda: page.evaluate("() => view.scale") > 1.5)
        after = page.evaluate("([x, y]) => place({ clientX: x, clientY: y })", [x, y])
        assert after == pytest.approx(before, abs=0.01)
        page.mouse.down()
        page.mouse.move(x + 50, y + 20)
        page.mouse.up()
        moved = page.evaluate("([x, y]) => place({ clientX: x, clientY: y })", [x + 50, y + 20])
        assert moved == pytest.approx(before, abs=0.01)
        page.keyboard.press("z")
        page.keyboard.press("z")
        page.keyboard.press("c")
        wait_until(lambda: page.evaluate("() => tool") == "click")
        with page.expect_response(lambda r: "/api/click" in r.url):
            page.mouse.click(x, y)
        wait_until(lambda: page.evaluate("() => clicks.length") == 1)
        page.keyboard.down("Shift")
        with page.expect_response(lambda r: "/api/click" in r.url):
            page.mouse.click(x + 24, y)
        page.keyboard.up("Shift")
        assert [c[2] for c in page.evaluate("() => clicks")] == [True, False]
        with page.expect_response(lambda r: "/api/click" in r.url):
            page.keyboard.press("Control+z")
        wait_until(lambda: page.evaluate("() => clicks.length") == 1)
        spot = page.evaluate("() => clicks[0]")
        page.screenshot(path=str(curation / "clicks.png"))
        for width in (900, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width
            stage = page.locator("#canvas").bounding_box()
            assert stage["width"] > 0.6 * width
        press(page, "a")
        assert not page.faults
    (answer,) = Reviews(curation / REVIEW_FILE).standing()[item_id]
    assert (answer.action, answer.origin) == ("change", "click")
    assert answer.mask is not None
    assert answer.mask.to_array()[spot[1], spot[0]]


def test_two_servers_of_one_folder(curation: Path) -> None:
    with served(curation) as (first, _), served(curation) as (second, _), browser() as context:
        assert first != second
        anna, ben = opened(context, first, "anna"), opened(context, second, "ben")
        items = [shown(anna)]
        press(anna, "s")
        press(ben, "s")
        press(ben, "d")
        items.append(shown(anna))
        # What was answered on the other server arrives with the next answer.
        press(anna, "s")
        wait_until(lambda: anna.evaluate("() => items.filter((i) => i.reviewers.includes('ben')).length") == 2)
        assert not anna.faults + ben.faults
    standing = Reviews(curation / REVIEW_FILE).standing()
    assert [a.reviewer for a in standing[items[0]]] == ["anna", "ben"]
