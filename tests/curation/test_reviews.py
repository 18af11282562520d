"""What people answer: kept, counted once, taken back, settled; locked files, other programs' files, the server."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sqlite3
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from curation.miniature_split import HEIGHT, WIDTH, square
from starlette.testclient import TestClient

from refbench.curation.agreement import boundary_ious
from refbench.curation.annotation_tools import (
    cvat_runs,
    mask_from_cvat,
    pack_label_studio,
    read_answers,
    unpack_label_studio,
    write_queue,
)
from refbench.curation.folder import load_items
from refbench.curation.review.answers import REVIEW_FILE, SAME_MASK, Answer, AnswerError, Reviews, settle
from refbench.curation.review.app import create_app
from refbench.curation.review.pace import agreements, pace_of
from refbench.curation.review.queue import DISAGREED, SETTLED, queue_of
from refbench.curation.tables import read_decisions
from refbench.errors import MaskError, RunError
from refbench.masks.mask import Mask
from refbench.storage.samples import load_samples

MASK = square(10, 10, 20)


def answer(
    reviewer: str = "anna", action: str = "keep", key: str = "", item: str = "i", mask: Mask | None = None
) -> Answer:
    key = key or f"{reviewer}-{action}-{item}"
    return Answer(key, "mask", item, reviewer, action, "2026-01-01T00:00:00+00:00", mask)


def test_answers_are_kept_once_and_can_be_taken_back(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path / REVIEW_FILE)
    assert reviews.add(answer())
    assert not reviews.add(answer())
    reviews.add(answer(action="change", mask=MASK))
    assert [a.action for a in Reviews(tmp_path / REVIEW_FILE).standing()["i"]] == ["change"]
    undone = reviews.undo("anna", "later")
    assert undone is not None
    assert undone.mask == MASK
    assert [a.action for a in reviews.standing()["i"]] == ["keep"]
    assert reviews.undo("ben", "later") is None
    reviews.undo("anna", "later")
    assert reviews.standing() == {}


def test_many_at_the_same_moment(tmp_path: Path) -> None:
    path = tmp_path / REVIEW_FILE
    Reviews(path)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda k: Reviews(path).add(answer(f"r{k % 10}", key=str(k % 50))), range(200)))
    assert sum(done) == 50
    assert len(Reviews(path).standing()["i"]) == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (answer(action="burn"), "one of keep, change, drop"), (answer(" "), "the name of the reviewer must have 1 to"),
        (answer("a" * 61), "the name of the reviewer must have 1 to"),
        (answer(action="change"), "an answer must have a mask if its action is `change`"),
        (answer(mask=MASK), "an answer must have a mask if its action is `change`"),
        (answer(action="change", mask=Mask.empty(5, 5)), "is empty"),
        (Answer("k", "expression", "i", "anna", "change", "", MASK), "one of keep, drop"),
    ],
)  # fmt: skip
def test_answers_that_are_none(tmp_path: Path, wrong: Answer, message: str) -> None:
    reviews = Reviews(tmp_path / REVIEW_FILE)
    with pytest.raises(AnswerError, match=message):
        reviews.add(wrong)
    with pytest.raises(AnswerError, match=message):
        reviews.add_all([answer(key="other"), wrong])
    assert reviews.standing() == {}


def test_a_key_is_one_answer(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path / REVIEW_FILE)
    reviews.add(answer(key="k"))
    with pytest.raises(AnswerError, match="belongs to another answer"):
        reviews.add_all([answer("ben", key="new"), answer(action="drop", key="k")])
    assert [a.action for a in reviews.standing()["i"]] == ["keep"]


def test_a_file_that_is_locked_or_none(tmp_path: Path) -> None:
    path = tmp_path / REVIEW_FILE
    reviews = Reviews(path, busy_seconds=0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match="another program has locked"):
        reviews.add(answer())
    holder.execute("ROLLBACK")
    holder.close()
    assert reviews.add(answer())
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(RunError, match=r"is not a database of review answers \("):
        Reviews(path)


def test_when_answers_settle_an_item() -> None:
    near = square(10, 10, 20).union(square(10, 30, 1))
    far = square(10, 10, 24)
    keep, drop = answer("a"), answer("b", "drop")
    first, second = answer("c", "change", mask=MASK), answer("d", "change", mask=near)

    def action(answers: list[Answer], reviewers: int) -> str:
        decision = settle(answers, reviewers)
        return decision.action if decision else ""

    assert action([keep], 1) == "keep"
    assert action([keep], 2) == ""
    assert action([keep, drop], 1) == ""
    assert action([keep, drop, answer("e", "drop")], 1) == "drop"
    assert action([first, second], 2) == "change"
    found = settle([first, second], 2)
    assert found is not None
    assert found.mask == MASK
    assert found.reviewer == "c, d"
    assert action([first, answer("d", "change", mask=far)], 2) == ""
    # Whatever the order: the one in the middle is the same as both others, which are not the same.
    chain = [Mask.from_array(np.pad(np.ones((200, 200 + k), bool), ((20, 20), (20, 50 - k)))) for k in (0, 1, 2)]
    same = boundary_ious(chain) >= SAME_MASK
    assert (same[0, 1], same[1, 2], same[0, 2]) == (True, True, False)
    found = set()
    for order in itertools.permutations(range(3)):
        decision = settle([answer(f"r{k}", "change", mask=chain[k]) for k in order], 2)
        found.add((decision.mask.counts, decision.action) if decision and decision.mask else None)
    assert len(found) == 1


def test_one_person_has_one_voice(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path / REVIEW_FILE)
    for k, name in enumerate(("Anna", "anna", " ANNA ")):
        reviews.add(answer(name.strip(), key=str(k)))
    assert len(reviews.standing()["i"]) == 1


def test_the_queue_begins_with_disagreements_and_doubt(curation: Path) -> None:
    masks, expressions = read_decisions(curation)
    queue = queue_of(masks, expressions, {}, 1)
    assert queue
    assert [e.doubt for e in queue] == sorted((e.doubt for e in queue), reverse=True)
    assert all(masks[e.item_id].action == "review" for e in queue)
    last, other = queue[-1].item_id, queue[-2].item_id
    standing = {last: [answer("a", item=last), answer("b", "drop", item=last)], other: [answer("a", item=other)]}
    torn = queue_of(masks, expressions, standing, 1)
    assert (torn[0].item_id, torn[0].state) == (last, DISAGREED)
    assert next(e for e in torn if e.item_id == other).state == SETTLED


@pytest.fixture
def client(curation: Path) -> TestClient:
    return TestClient(create_app(curation, "secret", ("127.0.0.1:1",)), base_url="http://127.0.0.1:1")


ORIGIN = {"origin": "http://127.0.0.1:1"}
JSON = {**ORIGIN, "content-type": "application/json"}


def test_a_disk_that_fails_is_no_fault_of_the_answer(client: TestClient, curation: Path) -> None:
    item = client.get("/secret/api/queue").json()["items"][0]["item_id"]
    good = {"key": "k", "item_id": item, "reviewer": "anna", "action": "keep"}
    (curation / REVIEW_FILE).write_bytes(b"this is not a database" * 100)
    refused = client.post("/secret/api/answer", json=good, headers=ORIGIN)
    assert (refused.status_code, "not a database" in refused.json()["error"]) == (503, True)
    assert client.get("/secret/api/queue").status_code == 503
    half = {**good, "note": "\ud800"}
    assert client.post("/secret/api/answer", content=json.dumps(half), headers=JSON).status_code == 400


def test_the_server_tells_strangers_nothing(client: TestClient, curation: Path) -> None:
    assert client.get("/secret/").status_code == 200
    assert client.get("/secret/api/queue").json()["source"] == "scenes-hurried/val"
    item = client.get("/secret/api/queue").json()["items"][0]["item_id"]
    good = {"key": "k", "item_id": item, "reviewer": "anna", "action": "keep"}
    for path in ("/wrong/", "/wrong/api/queue", "/wrong/api/item?id=x", "/wrong/api/picture?id=x"):
        assert client.get(path).status_code == 403
    assert client.get("/secret/api/queue", headers={"host": "evil.example:1"}).status_code == 403
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {}):
        refused = client.post("/secret/api/answer", json=good, headers=headers)
        assert refused.status_code == 403
    # A form of another site can send text/plain only.
    text = client.post("/secret/api/answer", content=json.dumps(good), headers={**ORIGIN, "content-type": "text/plain"})
    assert text.status_code == 403
    assert client.post("/wrong/api/answer", json=good, headers=ORIGIN).status_code == 403
    assert Reviews(curation / REVIEW_FILE).standing() == {}
    told = client.post("/secret/api/answer", json=good, headers=ORIGIN).json()
    assert (told["saved"], told["again"]) == (True, False)
    assert client.post("/secret/api/answer", json=good, headers=ORIGIN).json()["again"] is True
    page = client.get("/secret/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    for name in ("..%2Freview_app.py", "%2e%2e/review_app.py", "review_app.py"):
        assert client.get(f"/secret/assets/{name}").status_code in (404, 403)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a JSON object"), ({"key": 3}, "must be strings"), ({"item_id": "nowhere"}, "unknown item"),
        ({"action": "burn"}, "one of keep"), ({"action": "change"}, "counts must be"),
        ({"action": "change", "counts": [1, 2]}, "the sum of the counts is 3"),
        ({"action": "change", "counts": [-1]}, "uncompressed counts must be between 0 and"),
        ({"reviewer": ""}, "the name of the reviewer must have 1 to"),
    ],
)  # fmt: skip
def test_answers_that_the_server_refuses(client: TestClient, curation: Path, content: object, message: str) -> None:
    item = client.get("/secret/api/queue").json()["items"][0]["item_id"]
    good = {"key": "k", "item_id": item, "reviewer": "anna", "action": "keep"}
    body = {**good, **content} if isinstance(content, dict) else content
    refused = client.post("/secret/api/answer", json=body, headers=ORIGIN)
    assert refused.status_code == 400
    assert message in refused.json()["error"]
    assert (
        client.post(
            "/secret/api/answer", content=b"{", headers={**ORIGIN, "content-type": "application/json"}
        ).status_code
        == 400
    )
    long = client.post(
        "/secret/api/answer", content=b" " * 5_000_000, headers={**ORIGIN, "content-type": "application/json"}
    )
    assert long.status_code == 413
    assert Reviews(curation / REVIEW_FILE).standing() == {}


def blob(seed: int) -> Mask:
    random = np.random.default_rng(seed)
    return Mask.from_array(random.random((HEIGHT, WIDTH)) < random.choice([0.02, 0.5, 0.98]))


@pytest.mark.parametrize("seed", range(12))
def test_codes_of_other_programs(seed: int) -> None:
    mask = blob(seed) if seed else MASK
    box, runs = cvat_runs(mask)
    assert mask_from_cvat(box, runs, *mask.size) == mask
    # Along the rows of the box, background first.
    left, top, width, height = box
    assert [bool(k % 2) for k, n in enumerate(runs) for _ in range(n)] == mask.to_array()[
        top : top + height, left : left + width
    ].ravel().tolist()
    assert unpack_label_studio(pack_label_studio(mask), *mask.size) == mask


def test_codes_that_are_broken() -> None:
    with pytest.raises(MaskError, match="extends beyond the image of"):
        mask_from_cvat((70, 0, 20, 5), [100], HEIGHT, WIDTH)
    with pytest.raises(MaskError, match="the sum of the runs must be"):
        mask_from_cvat((0, 0, 5, 5), [3, 4], HEIGHT, WIDTH)
    packed = pack_label_studio(MASK)
    with pytest.raises(MaskError, match="too early"):
        unpack_label_studio(packed[: len(packed) // 2], HEIGHT, WIDTH)
    with pytest.raises(MaskError, match="values instead of 4 x"):
        unpack_label_studio(packed, HEIGHT, WIDTH + 1)
    # What Label Studio's own package writes for an image of 2 x 1, by hand: 8 values of 8 bits, runs of 3, 4, 8, 16.
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + f"1{0:02b}{3:03b}{0:08b}" + f"1{0:02b}{3:03b}{255:08b}"
    bits += "0" * (-len(bits) % 8)
    found = unpack_label_studio([int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)], 1, 2)
    assert found.to_array().tolist() == [[False, True]]


@pytest.mark.parametrize("form", ["cvat", "label-studio"])
def test_the_queue_goes_out_and_comes_back(curation: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "queue"
    masks, expressions = read_decisions(curation)
    waiting = [e.item_id for e in queue_of(masks, expressions, {}, 1)]
    assert write_queue(curation, form, path) == (len(waiting), 0)
    untouched = path.read_bytes()
    if form == "cvat":
        text = path.read_text().replace('<attribute name="action" />', '<attribute name="action">drop</attribute>', 1)
        path.write_text(text)
        assert read_answers(curation, form, path, reviewer="ben") == len(waiting)
        # The rest came back as it went.
        actions = sorted(a[0].action for a in Reviews(curation / REVIEW_FILE).standing().values())
        assert actions == ["drop"] + ["keep"] * (len(waiting) - 1)
    else:
        tasks = json.loads(untouched)
        targets = {t.mask_id: t for i in load_items("scenes-hurried/val") for t in i.masks}
        changed = targets[tasks[0]["data"]["item_id"]].mask.union(
            Mask.from_crop(np.ones((9, 9), bool), 0, 0, *targets[tasks[0]["data"]["item_id"]].mask.size)
        )
        result = {**tasks[0]["predictions"][0]["result"][0]}
        result["value"] = {"format": "rle", "rle": pack_label_studio(changed), "brushlabels": ["target"]}
        tasks[0]["annotations"] = [{"result": [result]}]
        tasks[1]["annotations"] = [{"result": [{"type": "choices", "value": {"choices": ["drop"]}}]}]
        tasks[2]["annotations"] = [{"result": [], "was_cancelled": True}]
        path.write_text(json.dumps(tasks))
        assert read_answers(curation, form, path, reviewer="ben") == 2
        standing = Reviews(curation / REVIEW_FILE).standing()
        assert standing[tasks[0]["data"]["item_id"]][0].mask == changed
        assert standing[tasks[1]["data"]["item_id"]][0].action == "drop"
    assert read_answers(curation, form, path, reviewer="ben") == 0
    # Taken back on the page, it can be said again.
    Reviews(curation / REVIEW_FILE).undo("ben", "later")
    assert read_answers(curation, form, path, reviewer="ben") == 1


def test_several_shapes_and_several_people(curation: Path, tmp_path: Path) -> None:
    path = tmp_path / "queue"
    write_queue(curation, "cvat", path)
    root = ElementTree.parse(path).getroot()
    image = root.find("image")
    assert image is not None
    mask = image.find("mask")
    assert mask is not None
    corner = ElementTree.fromstring('<polygon points="0,0;9,0;9,9;0,9"><attribute name="item_id"/></polygon>')
    item = str(mask.find("attribute[@name='item_id']").text)  # type: ignore[union-attr]
    corner.find("attribute").text = item  # type: ignore[union-attr]
    image.append(corner)
    for other in list(root)[2:]:
        root.remove(other)
    for other in list(image)[1:-1]:
        image.remove(other)
    ElementTree.ElementTree(root).write(path)
    assert read_answers(curation, "cvat", path, reviewer="ben") == 1
    (drawn,) = Reviews(curation / REVIEW_FILE).standing()[item]
    target = next(t for i in load_items("scenes-hurried/val") for t in i.masks if t.mask_id == item)
    both = target.mask.union(Mask.from_polygons([[0, 0, 9, 0, 9, 9, 0, 9]], *target.mask.size))
    assert (drawn.action, drawn.mask) == ("change", both)
    choice = [{"type": "choices", "value": {"choices": ["drop"]}}]
    people = [{"completed_by": k, "result": choice} for k in (1, {"email": "c@example.org"})]
    path.write_text(json.dumps([{"data": {"item_id": item}, "annotations": people}]))
    assert read_answers(curation, "label-studio", path, reviewer="team") == 2
    names = [a.reviewer for a in Reviews(curation / REVIEW_FILE).standing()[item]]
    assert names == ["ben", "team/1", "team/c@example.org"]


CVAT_MASK = (
    '<annotations><image height="{size}" width="{size}"><mask rle="{runs}" left="{left}" top="0" width="9" height="9">'
    '<attribute name="item_id">{item}</attribute></mask></image></annotations>'
)


def cvat(item: str = "{item}", size: str = "9", runs: str = "81", left: str = "0") -> str:
    return CVAT_MASK.format(item=item, size=size, runs=runs, left=left)


BRUSHED = {"data": {"item_id": "{item}"}, "annotations": [{"result": [{"type": "brushlabels", "value": {}}]}]}


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("label-studio", '[{"data": {"item_id": "{item}"}, "annotations": [{"result": ["text"]}]}]', "cannot be read"),
        ("cvat", "<annotations><image", r"is not valid XML \("), ("cvat", "<html/>", "is not a CVAT export"),
        ("cvat", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "declares XML entities"),
        ("cvat", cvat(), "cannot be read"), ("cvat", cvat("nowhere", left="inf"), "has no such item"),
        ("cvat", cvat(size="1000000"), "cannot be read"),
        ("label-studio", "{}", "no list of tasks"), ("label-studio", "[{}]", "has no data.item_id"),
        ("label-studio", json.dumps([BRUSHED]), "cannot be read"),
        ("word", "", "not a supported format"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_change_nothing(
    curation: Path, tmp_path: Path, form: str, content: str, message: str
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    if "{item}" in content:
        masks, _ = read_decisions(curation)
        content = content.replace("{item}", next(iter(masks)))
        path.write_text(content)
    with pytest.raises(RunError, match=message):
        read_answers(curation, form, path)
    assert not (curation / REVIEW_FILE).exists() or Reviews(curation / REVIEW_FILE).standing() == {}


def test_a_page_learns_what_has_changed_and_nothing_else(client: TestClient, curation: Path) -> None:
    queue = client.get("/secret/api/queue").json()
    ids = [e["item_id"] for e in queue["items"]]
    one = {"key": "1", "item_id": ids[0], "reviewer": "anna", "action": "keep", "seconds": 2.5}
    told = client.post("/secret/api/answer", json={**one, "since": queue["revision"]}, headers=ORIGIN).json()
    assert [(e["item_id"], e["state"], e["reviewers"]) for e in told["entries"]] == [(ids[0], SETTLED, ["anna"])]
    # Somebody else, on another server of the same folder, answers too.
    other = TestClient(create_app(curation, "other", ("127.0.0.1:2",)), base_url="http://127.0.0.1:2")
    theirs = {"key": "2", "item_id": ids[0], "reviewer": "ben", "action": "drop"}
    assert other.post("/other/api/answer", json=theirs, headers={"origin": "http://127.0.0.1:2"}).status_code == 200
    batch = [{"key": str(k), "item_id": ids[k], "reviewer": "anna", "action": "keep"} for k in (5, 3)]
    told = client.post("/secret/api/answer", json={"answers": batch, "since": told["revision"]}, headers=ORIGIN).json()
    assert {e["item_id"]: e["state"] for e in told["entries"]} == {
        ids[0]: DISAGREED, ids[3]: SETTLED, ids[5]: SETTLED,
    }  # fmt: skip
    assert client.get("/secret/api/changes", params={"since": told["revision"]}).json()["entries"] == []
    undone = client.post(
        "/secret/api/undo", json={"reviewer": "anna", "since": told["revision"]}, headers=ORIGIN
    ).json()
    assert undone["item_id"] == ids[3]
    assert [(e["item_id"], e["reviewers"]) for e in undone["entries"]] == [(ids[3], [])]
    # A page that knows nothing is told all of it.
    everything = client.get("/secret/api/changes", params={"since": "nonsense"}).json()
    assert {e["item_id"] for e in everything["entries"]} == {ids[0], ids[3], ids[5]}


def test_a_batch_is_taken_as_a_whole_or_not_at_all(client: TestClient, curation: Path) -> None:
    ids = [e["item_id"] for e in client.get("/secret/api/queue").json()["items"]]
    good = {"key": "1", "item_id": ids[0], "reviewer": "anna", "action": "keep"}
    for batch, message in (
        ([good, {**good, "key": "2", "action": "burn"}], "one of keep"), ([], "1 to 500"), ([good] * 501, "1 to 500"),
        ([good, 7], "a JSON object"), ([{**good, "seconds": True}], "must be a number"),
        ([{**good, "seconds": 1e9}], "between 0 and 600"),
    ):  # fmt: skip
        refused = client.post("/secret/api/answer", json={"answers": batch}, headers=ORIGIN)
        assert (refused.status_code, message in refused.json()["error"]) == (400, True)
    assert Reviews(curation / REVIEW_FILE).standing() == {}


def test_how_long_reviewers_take_and_how_far_they_agree() -> None:
    def said(reviewer: str, action: str, item: str, seconds: float | None = None) -> Answer:
        mask = MASK if action == "change" else None
        return Answer(f"{reviewer} {item}", "mask", item, reviewer, action, "2026-01-01", mask, seconds=seconds)

    answers = [
        said("Anna", "keep", "a", 1.0), said("ben", "keep", "a", 4.0), said("anna", "drop", "b", 3.0),
        said("ben", "drop", "b"), said("anna", "change", "c", 9.0), said("ben", "change", "c"),
        said("anna", "keep", "d"), said("ben", "drop", "d"), said("carl", "keep", "a"),
    ]  # fmt: skip
    anna, ben, carl = pace_of(answers)
    assert (anna.reviewer, anna.items, anna.median_seconds) == ("anna", 4, 3.0)
    assert anna.actions == {"change": 1, "drop": 1, "keep": 2}
    assert (ben.median_seconds, carl.median_seconds) == (4.0, None)
    standing: dict[str, list[Answer]] = {}
    for one in answers:
        standing.setdefault(one.item_id, []).append(one)
    pairs = {(p.first, p.second): p for p in agreements(standing)}
    assert (pairs["anna", "ben"].items, pairs["anna", "ben"].agreed) == (4, 0.75)
    # By hand: 3 of 4 observed; by chance (2 * 1 + 1 * 2 + 1 * 1) / 16 = 5 / 16.
    assert pairs["anna", "ben"].kappa == pytest.approx((12 - 5) / (16 - 5))
    assert pairs["anna", "carl"].kappa is None
    assert pairs["ben", "carl"].agreed == 1


def test_answers_of_a_version_without_times(tmp_path: Path) -> None:
    path = tmp_path / REVIEW_FILE
    Reviews(path).add(answer())
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE answers DROP COLUMN seconds")
    connection.commit()
    connection.close()
    reviews = Reviews(path)
    assert reviews.standing()["i"][0].seconds is None
    reviews.add(dataclasses.replace(answer("ben"), seconds=1.5))
    assert [a.seconds for a in Reviews(path).standing()["i"]] == [None, 1.5]


def test_clicks_make_a_mask(client: TestClient, curation: Path) -> None:
    targets = {t.mask_id: t for image in load_items("scenes-hurried/val") for t in image.masks}
    truth = {s.sample_id: s.target for s in load_samples("scenes/val")}
    ids = [e["item_id"] for e in client.get("/secret/api/queue").json()["items"] if e["item_id"] in targets]
    better = 0
    for item_id in ids[:12]:
        target = targets[item_id]
        exact = truth[target.samples[0].sample_id.replace("scenes-hurried", "scenes", 1)]
        rows, columns = np.nonzero(exact.to_array())
        middle = int(np.argmin(np.abs(rows - rows.mean()) + np.abs(columns - columns.mean())))
        body = {"item_id": item_id, "clicks": [[int(columns[middle]), int(rows[middle]), True]]}
        told = client.post("/secret/api/click", json=body, headers=ORIGIN).json()
        assert told["refiner"] == "clicks"
        drawn = Mask.from_rle({"size": list(exact.size), "counts": told["counts"]})
        # What was clicked is in the mask; a second click takes it out again.
        assert drawn.to_array()[rows[middle], columns[middle]]
        body["clicks"].append([int(columns[middle]), int(rows[middle]), False])
        body["counts"] = told["counts"]
        without = client.post("/secret/api/click", json=body, headers=ORIGIN).json()["counts"]
        assert not Mask.from_rle({"size": list(exact.size), "counts": without}).to_array()[
            rows[middle], columns[middle]
        ]
        better += iou(drawn, exact) > 0.8
    assert better >= 4
    for clicks, message in (
        ([], "1 to 100"),
        ([[9, 9, 1]] * 101, "1 to 100"),
        ([[-1, 0, 1]], "outside"),
        (7, "a list"),
    ):
        refused = client.post("/secret/api/click", json={"item_id": ids[0], "clicks": clicks}, headers=ORIGIN)
        assert (refused.status_code, message in refused.json()["error"]) == (400, True)
    assert client.post("/secret/api/click", json={"item_id": "nowhere"}, headers=ORIGIN).status_code == 400


def iou(first: Mask, second: Mask) -> float:
    union = first.union(second).area
    return (first.area + second.area - union) / union


@pytest.mark.parametrize("since", ["5 \ud800", "9" * 40, "1 x", "-1 ", "\0", "1 " + "0" * 10_000])
def test_a_revision_that_is_none_is_the_beginning(client: TestClient, curation: Path, since: str) -> None:
    item = client.get("/secret/api/queue").json()["items"][0]["item_id"]
    body = json.dumps({"key": "k", "item_id": item, "reviewer": "anna", "action": "keep", "since": since})
    headers = {**ORIGIN, "content-type": "application/json"}
    told = client.post("/secret/api/answer", content=body, headers=headers)
    assert (told.status_code, [e["item_id"] for e in told.json()["entries"]]) == (200, [item])
    body = json.dumps({"reviewer": "ben", "since": since})
    assert client.post("/secret/api/undo", content=body, headers=headers).status_code in (200, 400)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "k" * 100_000}, {"key": "a\0b"}, {"note": "a\0b"}, {"key": "\ud800"}, {"reviewer": "\ud800"},
        {"seconds": 10**400}, {"seconds": -1}, {"seconds": 1e300}, {"item_id": [1]}, {"action": {"a": 1}},
    ],
)  # fmt: skip
def test_answers_of_strangers_are_refused_in_one_message(
    client: TestClient, curation: Path, wrong: dict[str, object]
) -> None:
    item = client.get("/secret/api/queue").json()["items"][0]["item_id"]
    body = json.dumps({"key": "k", "item_id": item, "reviewer": "anna", "action": "keep", **wrong})
    told = client.post("/secret/api/answer", content=body, headers={**ORIGIN, "content-type": "application/json"})
    assert told.status_code == 400
    assert told.json()["error"]
    assert Reviews(curation / REVIEW_FILE).standing() == {}


@pytest.mark.parametrize(
    "clicks", [[[1.7, 2.2, True]], [[True, 1, True]], [["1", 2, True]], [[1, 2]], [[10**400, 1, True]], "no", [None]]
)
@pytest.mark.parametrize("item_id", [None, [1], {"a": 1}, 7])
def test_clicks_of_strangers(client: TestClient, curation: Path, clicks: object, item_id: object) -> None:
    masks, _ = read_decisions(curation)
    for name in (next(iter(masks)), item_id):
        told = client.post("/secret/api/click", json={"item_id": name, "clicks": clicks}, headers=ORIGIN)
        if name == item_id or clicks != [[10**400, 1, True]]:
            assert told.status_code == 400, told.text


def test_a_database_of_strangers_is_no_review(tmp_path: Path) -> None:
    empty, foreign, edited = (tmp_path / name for name in ("empty", "foreign", "edited"))
    empty.touch()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(RunError, match="contains no review answers"):
        Reviews(empty, new=False)
    for new in (True, False):
        with pytest.raises(RunError, match="contains no review answers"):
            Reviews(foreign, new=new)
    for number, (column, value) in enumerate(
        [("action", "burn"), ("item", "planet"), ("reviewer", ""), ("seconds", -1e300), ("key", "k" * 10_000)]
    ):
        path = edited.with_suffix(f".{number}")
        Reviews(path).add(answer())
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE answers SET {column} = ?", (value,))
        connection.close()
        with pytest.raises(RunError, match="was not written by refbench"):
            Reviews(path).standing()
