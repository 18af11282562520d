"""The review page: a local server for a curation folder.

It is protected against other web pages. The address contains a secret token. Requests that name another host are
refused, because a foreign name may point to this machine. An answer must be JSON and come from the page's own origin.
"""

from __future__ import annotations

import hmac
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from refbench.curation.agreement import boundary_ious
from refbench.curation.edits import EDITS_FILE, edited_items, edits_of
from refbench.curation.folder import load_items, open_curation
from refbench.curation.items import ImageItems, TargetMask
from refbench.curation.ledger import EXPRESSION, MASK
from refbench.curation.proposals import read_proposals
from refbench.curation.refiners.clicks import Click
from refbench.curation.review.answers import (
    MOST_SECONDS,
    REVIEW_FILE,
    Answer,
    AnswerError,
    Reviews,
)
from refbench.curation.review.click_tool import ClickTool
from refbench.curation.review.pace import agreements, pace_of
from refbench.curation.review.queue import queue_of
from refbench.curation.tables import read_decisions, read_findings
from refbench.errors import DatasetError, MaskError, RefbenchError, storable
from refbench.masks.mask import Mask
from refbench.masks.rle import run_lengths
from refbench.records import Action
from refbench.storage.images import image_size, load_image, original_for_web
from refbench.storage.provenance import now

ASSETS = Path(__file__).parent
KINDS = {
    "page.html": "text/html",
    "review.css": "text/css",
    **dict.fromkeys(("masks.js", "queue.js", "grid.js", "review.js"), "text/javascript"),
}
# Annotated objects that overlap a mask are drawn with it, the largest overlaps first.
MOST_OTHERS = 6
MOST_BATCH = 500
# Threads that write answers.
WRITERS = 4
MOST_BODY_BYTES = 4_000_000
# Nothing from elsewhere, no inline code: text of a dataset is text, whatever it looks like.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


Handler = Callable[[Request], Response]


class ReviewData:
    """The content of the page. The folder is read once, but the answers are read again for each request."""

    def __init__(self, folder: Path, everything: bool) -> None:
        curation = open_curation(folder)
        self.needed = curation.recipe.reviewers
        self.address = curation.address
        self.fingerprint = curation.fingerprint
        self.everything = everything
        self.masks, self.expressions = read_decisions(folder)
        self.proposals = read_proposals(folder)
        self.findings: dict[str, list[str]] = {}
        for f in read_findings(folder):
            self.findings.setdefault(f.item_id, []).append(f"{f.check}: {f.message}")
        self.images: dict[str, ImageItems] = {}
        self.targets: dict[str, TargetMask] = {}
        self.of_sample: dict[str, tuple[ImageItems, TargetMask | None]] = {}
        images = load_items(curation.address)
        # Nobody is asked about a mask that an edit decides.
        self.masks |= edited_items(images, curation.address, edits_of(folder), str(folder / EDITS_FILE)).masks
        for image in images:
            self.images[image.image_id] = image
            by_sample = {s.sample_id: t for t in image.masks for s in t.samples}
            self.targets |= {t.mask_id: t for t in image.masks}
            self.of_sample |= {s.sample_id: (image, by_sample.get(s.sample_id)) for s in image.samples}
        self.reviews = Reviews(folder / REVIEW_FILE)
        self.clicks = ClickTool(curation.recipe)

    def queue(self) -> list[dict[str, Any]]:
        standing = self.reviews.standing()
        entries = queue_of(self.masks, self.expressions, standing, self.needed, everything=self.everything)
        return [asdict(e) for e in entries]

    def changed(self, since: str) -> dict[str, Any]:
        """The entries of the items whose answers have changed since a revision, and the present revision."""
        items, revision = self.reviews.changes(since)
        standing = self.reviews.standing(items)
        masks = {i: self.masks[i] for i in items if i in self.masks}
        expressions = {i: self.expressions[i] for i in items if i in self.expressions}
        entries = queue_of(masks, expressions, standing, self.needed, everything=True)
        return {"entries": [asdict(e) for e in entries], "revision": revision}

    def pace(self) -> dict[str, Any]:
        """How long each reviewer takes, and how far they agree."""
        return {
            "reviewers": [asdict(p) for p in pace_of(self.reviews.all_answers())],
            "agreements": [asdict(a) for a in agreements(self.reviews.standing())],
        }

    def item(self, item_id: str) -> dict[str, Any]:
        """Everything that the page shows about one item."""
        expression = ""
        if item_id in self.targets:
            target: TargetMask | None = self.targets[item_id]
            image = self.images[self.targets[item_id].image_id]
            decision = self.masks[item_id]
        elif item_id in self.of_sample:
            image, target = self.of_sample[item_id]
            decision = self.expressions[item_id]
            expression = next(s.expression for s in image.samples if s.sample_id == item_id)
        else:
            raise DatasetError(f"unknown item {item_id!r}")
        samples = target.samples if target is not None else ()
        ids = [item_id, *(s.sample_id for s in samples if item_id in self.targets)]
        answers = self.reviews.standing([item_id]).get(item_id, [])
        return {
            "item": EXPRESSION if expression or item_id in self.of_sample else MASK,
            "item_id": item_id,
            "image_id": image.image_id,
            "height": image.height,
            "width": image.width,
            "category": target.category if target else "",
            "reason": decision.reason,
            "scores": decision.scores,
            "expression": expression,
            "expressions": [{"sample_id": s.sample_id, "text": s.expression} for s in samples],
            "findings": [text for i in ids for text in self.findings.get(i, ())],
            "source": _runs(target.mask) if target else None,
            "proposals": self._proposals(target) if target else [],
            "others": _others(image, target) if target else [],
            "answers": [
                {"reviewer": a.reviewer, "action": a.action, "origin": a.origin, "note": a.note} for a in answers
            ],
            "drawn": [_runs(a.mask) for a in answers if a.mask is not None],
        }

    def _proposals(self, target: TargetMask) -> list[dict[str, Any]]:
        """One answer per refiner, namely the one that agrees most with all other answers; sorted, best first.

        `votes` contains all answers of the refiner, from which the page draws a map.
        """
        found = [p for p in self.proposals.get(target.mask_id, ()) if not p.error]
        if not found:
            return []
        boundary = boundary_ious([p.mask for p in found])
        agreement = (boundary.sum(axis=1) - 1) / max(1, len(found) - 1)
        order = np.argsort(-agreement, kind="stable").tolist()
        shown: dict[str, dict[str, Any]] = {}
        for k in order:
            p = found[k]
            if p.refiner not in shown:
                shown[p.refiner] = {
                    "refiner": p.refiner, "agreement": float(agreement[k]), "confidence": p.confidence,
                    "mask": _runs(p.mask), "votes": [],
                }  # fmt: skip
            shown[p.refiner]["votes"].append(_runs(p.mask))
        return list(shown.values())

    def answer(self, content: Any) -> dict[str, Any]:
        """Store one answer, or all answers in the list `answers` of a batch. Either all of them are stored or none.
        Returns what the page needs next.
        """
        if not isinstance(content, dict):
            raise DatasetError("an answer must be a JSON object")
        batch, since = content.get("answers", [content]), content.get("since", "")
        if not isinstance(batch, list) or not 0 < len(batch) <= MOST_BATCH or not isinstance(since, str):
            raise DatasetError(f"`answers` must be a list of 1 to {MOST_BATCH} answers, and `since` must be a string")
        added = self.reviews.add_all([self._read(one) for one in batch])
        return {"saved": True, "again": not added, **self.changed(since)}

    def click(self, content: Any) -> dict[str, Any]:
        """The mask that is described by clicks on an item, as run lengths."""
        item_id = content.get("item_id") if isinstance(content, dict) else None
        if not isinstance(item_id, str) or item_id not in self.targets:
            raise DatasetError("clicks must be a JSON object with the item_id of a mask")
        target = self.targets[item_id]
        image = self.images[target.image_id]
        counts = content.get("counts")
        size = [image.height, image.width]
        start = Mask.empty(*size) if counts is None else Mask.from_rle({"size": size, "counts": counts})
        try:
            clicks = [Click(_whole(x), _whole(y), bool(inside)) for x, y, inside in content["clicks"]]
        except (KeyError, TypeError, ValueError):
            raise DatasetError("clicks must be a list of [x, y, inside], where x and y are integers") from None
        drawn = self.clicks.draw(image, start, clicks)
        return {"counts": _runs(drawn), "refiner": self.clicks.name}

    def _read(self, content: Any) -> Answer:
        if not isinstance(content, dict):
            raise DatasetError("an answer must be a JSON object")
        texts = {k: content.get(k, "") for k in ("key", "item_id", "reviewer", "action", "origin", "note")}
        if not all(isinstance(v, str) for v in texts.values()):
            raise DatasetError("key, item_id, reviewer, action, origin and note must be strings")
        item_id = texts["item_id"]
        item = MASK if item_id in self.targets else EXPRESSION
        if item_id not in self.targets and item_id not in self.of_sample:
            raise DatasetError(f"unknown item {item_id!r}")
        mask = None
        if texts["action"] == Action.CHANGE:
            size = self.targets[item_id].mask.size if item_id in self.targets else (0, 0)
            mask = Mask.from_rle({"size": list(size), "counts": content.get("counts")})
        seconds = content.get("seconds")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MOST_SECONDS
        ):
            raise DatasetError(f"seconds must be a number between 0 and {MOST_SECONDS:g}")
        return Answer(
            texts["key"], item, item_id, texts["reviewer"].strip(), texts["action"], now(), mask,
            texts["origin"][:60], texts["note"], None if seconds is None else float(seconds),
        )  # fmt: skip


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {value!r}")
    return value


@lru_cache(maxsize=8)
def _picture(path: str, height: int, width: int) -> tuple[bytes, str]:
    """An image of the dataset and its media type; a grey image if it cannot be read."""
    buffer = io.BytesIO()
    try:
        original = original_for_web(path)
        if original is not None and image_size(Path(path)) == (height, width):
            return original
        image = load_image(path, height, width)
    except DatasetError:
        image = Image.new("RGB", (width, height), (200, 200, 200))
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), "image/png"


def _runs(mask: Mask) -> list[int]:
    """The run lengths of a mask, column by column, starting with background; the JavaScript of the page decodes
    them.
    """
    return run_lengths(mask.to_array().T.ravel())


def _others(image: ImageItems, target: TargetMask) -> list[dict[str, Any]]:
    """The annotated objects that overlap a mask, the largest overlap first."""
    found = []
    for other in image.others(target):
        shared = target.mask.area + other.mask.area - target.mask.union(other.mask).area
        if shared:
            found.append((shared, other))
    found.sort(key=lambda pair: (-pair[0], pair[1].ann_id))
    return [
        {"ann_id": other.ann_id, "category": other.category, "shared": shared, "mask": _runs(other.mask)}
        for shared, other in found[:MOST_OTHERS]
    ]


class ReviewPage:
    """The request handlers of the page; `hosts` are the allowed values of the Host header, including the port."""

    def __init__(self, data: ReviewData, token: str, hosts: tuple[str, ...]) -> None:
        self._writers: CapacityLimiter | None = None
        self.data, self.token, self.hosts = data, token, hosts

    def guard(self, handler: Handler) -> Handler:
        """Wrap a handler so that it answers only requests with an allowed host and the right token."""

        def guarded(request: Request) -> Response:
            refusal = _refusal(request, self.token, self.hosts)
            response = JSONResponse({"error": refusal}, 403) if refusal else handler(request)
            response.headers.update(HEADERS)
            return response

        return guarded

    def asset(self, request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in KINDS:
            return JSONResponse({"error": "no such file"}, 404)
        return Response((ASSETS / name).read_bytes(), media_type=KINDS[name])

    def queue(self, request: Request) -> Response:
        data = self.data
        return _told(
            lambda: {
                "source": data.address,
                "fingerprint": data.fingerprint,
                "reviewers": data.needed,
                "revision": data.reviews.changes()[1],
                "items": data.queue(),
            }
        )

    def changes(self, request: Request) -> Response:
        return _told(lambda: self.data.changed(request.query_params.get("since", "")))

    def pace(self, request: Request) -> Response:
        return _told(self.data.pace)

    def item(self, request: Request) -> Response:
        return _told(lambda: self.data.item(request.query_params.get("id", "")))

    def image(self, request: Request) -> Response:
        image = self.data.images.get(request.query_params.get("id", ""))
        if image is None:
            return JSONResponse({"error": "no such image"}, 404)
        content, kind = _picture(image.image_path, image.height, image.width)
        return Response(content, media_type=kind)

    async def answer(self, request: Request) -> Response:
        return await self._posted(request, self.data.answer)

    async def click(self, request: Request) -> Response:
        return await self._posted(request, self.data.click)

    async def undo(self, request: Request) -> Response:
        return await self._posted(request, self._take_back)

    async def _posted(self, request: Request, work: Callable[[Any], dict[str, Any]]) -> Response:
        """Handle a POST request if it comes from the page itself."""
        origin = request.headers.get("origin")
        refusal = _refusal(request, self.token, self.hosts)
        if not refusal and origin not in [f"http://{host}" for host in self.hosts]:
            refusal = "answers come from the review page only"
        if not refusal and request.headers.get("content-type", "").partition(";")[0] != "application/json":
            refusal = "answers come as JSON"
        if refusal:
            return JSONResponse({"error": refusal}, 403, HEADERS)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BODY_BYTES:
                return JSONResponse({"error": "that is too long for an answer"}, 413, HEADERS)

        def parsed() -> dict[str, Any]:
            try:
                content = json.loads(body)
            except (ValueError, RecursionError):
                raise DatasetError("that is not JSON") from None
            return work(content)

        # SQLite waits for its turn: not in the loop that serves everybody else.
        # And not in the threads that send pictures, all of which might wait for a locked database.
        if self._writers is None:
            # Here, because it belongs to the running loop.
            self._writers = CapacityLimiter(WRITERS)
        response = await to_thread.run_sync(_told, parsed, limiter=self._writers)
        response.headers.update(HEADERS)
        return response

    def _take_back(self, content: Any) -> dict[str, Any]:
        found = [content.get(name, "") if isinstance(content, dict) else None for name in ("reviewer", "since")]
        reviewer, since = (text if isinstance(text, str) and storable(text) == text else None for text in found)
        if reviewer is None or since is None:
            raise DatasetError("reviewer and since must be strings")
        undone = self.data.reviews.undo(reviewer.strip(), now())
        return {"item_id": undone.item_id if undone else "", **self.data.changed(since)}


def create_app(folder: Path, token: str, hosts: tuple[str, ...], *, everything: bool = False) -> Starlette:
    """The application; `hosts` are the allowed values of the Host header, including the port."""
    page = ReviewPage(ReviewData(folder, everything), token, hosts)
    app = Starlette(
        routes=[
            Route("/{token}/", page.guard(page.asset)),
            Route("/{token}/assets/{name}", page.guard(page.asset)),
            Route("/{token}/api/queue", page.guard(page.queue)),
            Route("/{token}/api/changes", page.guard(page.changes)),
            Route("/{token}/api/pace", page.guard(page.pace)),
            Route("/{token}/api/item", page.guard(page.item)),
            Route("/{token}/api/picture", page.guard(page.image)),
            Route("/{token}/api/answer", page.answer, methods=["POST"]),
            Route("/{token}/api/click", page.click, methods=["POST"]),
            Route("/{token}/api/undo", page.undo, methods=["POST"]),
        ]
    )
    # Its answer to an address without the last slash would name the host that was asked for.
    app.router.redirect_slashes = False
    return app


def _refusal(request: Request, token: str, hosts: tuple[str, ...]) -> str:
    if request.headers.get("host", "") not in hosts:
        return "this page is for this machine alone; open the address that was printed"
    if not hmac.compare_digest(str(request.path_params.get("token", "")).encode(), token.encode()):
        return "wrong token; open the address that was printed"
    return ""


def _told(work: Callable[[], dict[str, Any]]) -> Response:
    """The result of `work` as JSON, or an error message if the request fails."""
    try:
        return JSONResponse(work())
    except MaskError as error:
        return JSONResponse({"error": f"the mask cannot be read: {error}"}, 400)
    except (DatasetError, AnswerError) as error:
        return JSONResponse({"error": str(error)}, 400)
    except RefbenchError as error:
        # The answer is a good one; the disk or the database is not. The page keeps it and sends it again.
        return JSONResponse({"error": str(error)}, 503)
