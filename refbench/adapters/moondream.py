"""`moondream`: Moondream Segmentation over HTTP, in the cloud or on your own server.

A response contains a box and a path relative to this box; refbench rasterises the path. Responses are cached, so a
resumed run never pays twice for the same request. Sources: docs.moondream.ai/skills/segment for the interface;
`svg_from_path` of the vendor's package for how a path is scaled to its box.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refbench.adapters.svg_paths import fill_path
from refbench.adapters.web_service import ServiceAdapter, WebService
from refbench.errors import MaskError
from refbench.masks.mask import Mask
from refbench.records import Answer, Question

KEY_VARIABLE = "MOONDREAM_API_KEY"
LAST_COMMAND = re.compile(r"[MmLlHhVvCcSsQqTtAaZz][^MmLlHhVvCcSsQqTtAaZz]*$")
KEPT = ("path", "bbox", "parse_error", "error", "finish_reason", "request_id", "metrics")


class Moondream(ServiceAdapter):
    """Moondream Segmentation over its HTTP interface, in the cloud or on your own server.

    The key is read from MOONDREAM_API_KEY and is used only in the header of requests.

    Args:
        endpoint: base address; it must use https, or http on this machine.
        model: name of the model; if empty, the service chooses it.
        concurrency: number of simultaneous requests.
        timeout: timeout of one attempt in seconds.
        retries: number of further attempts after a failure; `Retry-After` is obeyed, up to 120 s.
        price_per_1000: price of a thousand answers in dollars, for the estimated cost (0.40 on the vendor's page).
        cache: folder for cached responses, by default in $REFBENCH_HOME/cache.
    """

    name = "moondream"
    questions_suffice = True
    batch_size = 16

    def __init__(
        self,
        endpoint: str = "https://api.moondream.ai/v1",
        model: str = "",
        concurrency: int = 4,
        timeout: float = 60.0,
        retries: int = 5,
        price_per_1000: float = 0.40,
        cache: Path | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.price_per_1000 = price_per_1000
        price, header = price_per_1000 / 1000, "X-Moondream-Auth"
        super().__init__(
            WebService(self.name, endpoint, KEY_VARIABLE, header, concurrency, timeout, retries, price, cache)
        )

    def _answer(self, sample: Question, content: bytes, kind: str) -> Answer:
        asked: dict[str, Any] = {"object": sample.expression, "stream": False}
        if self.model:
            asked["model"] = self.model
        image = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        question = {**asked, "kind": kind, "image": hashlib.sha256(content).hexdigest()}
        response = self._service.ask("segment", {**asked, "image_url": image}, question, KEPT, _is_answer)
        return to_answer(response, sample.height, sample.width)


def _is_answer(response: Mapping[str, Any]) -> bool:
    return not response.get("error") and ("path" in response or bool(response.get("parse_error")))


def to_answer(response: Mapping[str, Any], height: int, width: int) -> Answer:
    """Convert a response of `/segment` to a mask: its path, drawn in its box.

    If there is no valid outline (no path, no box, an empty box, an invalid path), the mask is empty and has a note.
    """
    raw = json.dumps({k: response.get(k) for k in ("path", "bbox", "finish_reason") if k in response})
    empty = Mask.empty(height, width)
    path, box = response.get("path"), response.get("bbox")
    if response.get("parse_error"):
        return Answer(empty, note="the model's outline could not be parsed", raw=raw)
    if not isinstance(path, str) or not path.strip():
        return Answer(empty, note="no path in the answer", raw=raw)
    try:
        corners = tuple(float(box[k]) for k in ("x_min", "y_min", "x_max", "y_max"))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return Answer(empty, note="no box in the answer", raw=raw)
    left, top, right, bottom = corners
    if not all(map(math.isfinite, corners)) or left >= right or top >= bottom:
        return Answer(empty, note="a box without area", raw=raw)
    cut = response.get("finish_reason") == "length"
    mask = None
    # A path that was cut off ends in the middle of a command: it is drawn up to there.
    for drawn in (path, LAST_COMMAND.sub("", path)) if cut else (path,):
        try:
            mask = fill_path(drawn, (left, top, right, bottom), height, width)
            break
        except MaskError:
            continue
    if mask is None:
        return Answer(empty, note="a path that cannot be read", raw=raw)
    return Answer(mask, note="the path was cut off at the limit of tokens" if cut else "", raw=raw)
