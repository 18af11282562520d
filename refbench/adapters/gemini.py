"""`gemini`: Gemini over HTTP. It returns boxes, and a mask inside each box.

The model chooses the format of the mask: a PNG, a polygon or tokens. Thinking changes the output, so it is switched
off. Newer models may no longer segment. Therefore an answer in an unknown format is an error and never an empty mask.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from refbench.adapters.web_service import ServiceAdapter, WebService
from refbench.errors import AdapterError, MaskError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute
from refbench.records import Answer, Question

KEY_VARIABLE = "GEMINI_API_KEY"
PROMPT = (
    'Segment "{expression}". Answer with a JSON list that has one entry for each object that is meant, with its box in '
    '"box_2d" as [ymin, xmin, ymax, xmax] in thousandths of the image, its mask in "mask", and a text in "label". '
    "Answer with an empty list if nothing in the image is meant."
)
KEPT = ("candidates", "promptFeedback", "modelVersion")
THOUSANDTHS = 1000.0
# Of a probability map in 0..255; the vendor's example takes the same.
LEVEL = 127
LARGEST_MAP_PIXELS = 2**24
SEGMENT_TOKEN = re.compile(r"<seg_?(\d{1,3})>")
TOKENS = 16


class Gemini(ServiceAdapter):
    """Gemini over its HTTP interface.

    The key is read from GEMINI_API_KEY and is used only in the header of requests.

    Args:
        model: name of the model; gemini-2.5-flash returned masks in 2026, later models may not.
        endpoint: base address; it must use https, or http on this machine.
        decoder: weights of the mask decoder of PaliGemma (vae-oid.npz), for answers with tokens; without it, such
            answers are errors.
        concurrency, timeout, retries, price_per_1000, cache: as for `moondream`.
    """

    name = "gemini"
    questions_suffice = True
    mode = "generate"
    batch_size = 16

    def __init__(
        self,
        model: str = "gemini-2.5-flash",
        endpoint: str = "https://generativelanguage.googleapis.com/v1beta",
        decoder: Path | None = None,
        concurrency: int = 4,
        timeout: float = 120.0,
        retries: int = 5,
        price_per_1000: float = 0.0,
        cache: Path | None = None,
    ) -> None:
        self.model = model
        self.endpoint = endpoint
        self.decoder = decoder
        # Only token answers need torch.
        self._decode: Any = (
            load_attribute("refbench.adapters.paligemma_tokens:TokenDecoder")(decoder) if decoder else None
        )
        price, header = price_per_1000 / 1000, "x-goog-api-key"
        super().__init__(
            WebService(self.name, endpoint, KEY_VARIABLE, header, concurrency, timeout, retries, price, cache)
        )

    def _answer(self, sample: Question, content: bytes, kind: str) -> Answer:
        settings = {
            "temperature": 0,
            "responseMimeType": "application/json",
            "thinkingConfig": {"thinkingBudget": 0},
        }
        prompt = PROMPT.format(expression=sample.expression)
        picture = {"inline_data": {"mime_type": kind, "data": base64.b64encode(content).decode("ascii")}}
        body = {"contents": [{"parts": [picture, {"text": prompt}]}], "generationConfig": settings}
        question = {"prompt": prompt, "settings": settings, "kind": kind, "image": hashlib.sha256(content).hexdigest()}
        path = f"models/{self.model}:generateContent"
        response = self._service.ask(path, body, question, KEPT, _is_answer)
        return to_answer(response, sample.height, sample.width, self._decode)


def _is_answer(response: Mapping[str, Any]) -> bool:
    """Whether to cache a response. Only complete responses that were not refused are cached, because requests with
    other responses may succeed when repeated.
    """
    candidates = response.get("candidates") or [{}]
    return bool(candidates[0].get("content")) and candidates[0].get("finishReason") != "MAX_TOKENS"


def to_answer(response: Mapping[str, Any], height: int, width: int, decode: Any = None) -> Answer:
    """Convert a response of `generateContent` to a mask: the union of its entries, each drawn in its box.

    The note states the format of the masks. `decode` converts 16 tokens to a soft mask, float (64, 64) between 0 and 1.

    Raises:
        AdapterError: the response was refused, is truncated, or has an unknown format.
    """
    text = _text_of(response)
    bare = re.sub(r"^\s*```(?:json)?|```\s*$", "", text.strip()).strip()
    try:
        entries = json.loads(bare)
    except ValueError:
        raise AdapterError(f"the answer is not valid JSON, perhaps because it was cut off: {text[:200]!r}") from None
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise AdapterError(f"the answer is not a list of objects: {text[:200]!r}")
    masks, forms = [], set()
    for entry in entries:
        mask, form = _entry_mask(entry, height, width, decode)
        masks.append(mask)
        forms.add(form)
    union = Mask.empty(height, width).union(*masks)
    note = f"mask as {' and '.join(sorted(forms))}" if forms else ""
    return Answer(union, no_target=not entries, note=note, raw=text)


def _text_of(response: Mapping[str, Any]) -> str:
    try:
        candidate = response["candidates"][0]
        parts = candidate["content"]["parts"]
        text = "".join(str(p["text"]) for p in parts if "text" in p and not p.get("thought"))
    except (KeyError, IndexError, TypeError):
        why = json.dumps(response.get("promptFeedback") or response.get("candidates") or {})[:200]
        raise AdapterError(f"the response contains no answer: {why}") from None
    if candidate.get("finishReason") == "MAX_TOKENS":
        raise AdapterError("the answer was cut off because it reached the token limit")
    return text


def _entry_mask(entry: Mapping[str, Any], height: int, width: int, decode: Any) -> tuple[Mask, str]:
    mask = entry.get("mask")
    if isinstance(mask, list):
        return _polygon(mask, height, width), "polygon"
    if not isinstance(mask, str):
        raise AdapterError(f"an entry of the answer has no mask: {json.dumps(entry)[:200]}")
    box = _box(entry, height, width)
    tokens = [int(k) for k in SEGMENT_TOKEN.findall(mask)]
    if tokens:
        if decode is None:
            raise AdapterError(
                "the mask is encoded as tokens; pass the file of the token decoder with -o decoder=vae-oid.npz"
            )
        if len(tokens) != TOKENS or max(tokens) > LAST_CODE:
            raise AdapterError(f"the mask has {len(tokens)} tokens instead of {TOKENS}")
        return _in_box(decode(tokens) * 255.0, box, height, width), "tokens"
    return _in_box(_png(mask), box, height, width), "PNG"


LAST_CODE = 127


def _box(entry: Mapping[str, Any], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right in pixels, clipped to the image."""
    try:
        top, left, bottom, right = (float(v) for v in entry["box_2d"])
    except (KeyError, TypeError, ValueError):
        raise AdapterError(
            f"an entry of the answer has no box_2d with four numbers: {json.dumps(entry)[:200]}"
        ) from None
    sides = (top * height, left * width, bottom * height, right * width)
    limits = (height, width, height, width)
    y0, x0, y1, x1 = (int(np.clip(v / THOUSANDTHS, 0, limit)) for v, limit in zip(sides, limits, strict=True))
    return y0, x0, y1, x1


def _polygon(points: Sequence[Any], height: int, width: int) -> Mask:
    """A polygon from [x, y] points in thousandths of the image."""
    try:
        flat = [v for x, y in points for v in (float(x) * width / THOUSANDTHS, float(y) * height / THOUSANDTHS)]
        return Mask.from_polygons([flat], height, width)
    except (TypeError, ValueError, MaskError) as error:
        raise AdapterError(f"the polygon {str(points)[:120]} cannot be drawn: {error}") from None


def _png(mask: str) -> NDArray[np.float64]:
    """The levels 0..255 of a base64-encoded PNG."""
    try:
        content = base64.b64decode(mask.partition(";base64,")[2] or mask, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            if opened.width * opened.height > LARGEST_MAP_PIXELS:
                raise AdapterError(
                    f"the mask is a PNG of {opened.width} x {opened.height} px (width x height), which is too large"
                )
            return np.asarray(opened.convert("L"), dtype=np.float64)
    except (binascii.Error, ValueError, OSError, UnidentifiedImageError) as error:
        raise AdapterError(f"the mask {mask[:40]!r} has an unknown format: {error}") from None


def _in_box(levels: NDArray[np.float64], box: tuple[int, int, int, int], height: int, width: int) -> Mask:
    """The levels 0..255, resized to the box and thresholded at LEVEL."""
    top, left, bottom, right = box
    if bottom <= top or right <= left:
        return Mask.empty(height, width)
    fitted = Image.fromarray(levels.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    return Mask.from_crop(np.ascontiguousarray(np.asarray(fitted) > LEVEL), top, left, height, width)
