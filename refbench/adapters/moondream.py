"""`moondream`: Moondream's segmentation over HTTP, in the cloud or from a server of your own.

An answer is a path in units of its box, which is drawn here. Answers are kept by content, so a run that goes on pays
for none twice. Source of the contract: docs.moondream.ai/skills/segment; of what the path means: the engine, whose
`svg_from_path` scales it to the box.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from PIL import Image

from refbench.errors import AdapterError, MaskError, RunStopped
from refbench.mask import Mask
from refbench.records import Answer, Sample
from refbench.storage import atomic_file, home
from refbench.vector_paths import fill_path

KEY_VARIABLE = "MOONDREAM_API_KEY"
FATAL = {
    401: "the key is refused",
    402: "the account has no credit left",
    403: "the key may not do this",
    404: "there is no such service at the endpoint",
}
AGAIN = (408, 425, 429, 500, 502, 503, 504, 529)
# A server that asks for more patience than this is as good as down.
LONGEST_WAIT_SECONDS = 120
# So many samples in a row without an answer, and the service is down, not the sample at fault.
DOWN_AFTER = 3
LARGEST_ANSWER = 8 * 2**20
AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png"}


class Moondream:
    """Moondream Segmentation over its HTTP interface, in the cloud or on your own server.

    The key is read from MOONDREAM_API_KEY and goes nowhere but into the header of a request.

    Args:
        endpoint: base address; https, or http on this machine.
        model: the model to ask for; empty leaves it to the service.
        concurrency: requests at once.
        timeout: seconds for one attempt.
        retries: attempts after a failed one; `Retry-After` is obeyed.
        price_per_1000: dollars for a thousand answers, for the estimate of the cost (the vendor's page said 0.40).
        cache: folder of the kept answers, by default below $REFBENCH_HOME/cache.
    """

    name = "moondream"
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
        self.endpoint = _checked(endpoint)
        self.model = model
        self.price_per_1000 = price_per_1000
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key and not _is_here(self.endpoint):
            raise AdapterError(f"moondream needs a key: set {KEY_VARIABLE} (options never carry keys, they are stored)")
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise AdapterError("concurrency and timeout must be above 0, retries not below")
        self._cache = (Path(cache) if cache else home() / "cache" / "moondream").expanduser()
        self._timeout = timeout
        self._retries = retries
        self._http = urllib3.PoolManager(maxsize=concurrency, block=True)
        self._threads = ThreadPoolExecutor(concurrency, "moondream")
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._used: dict[str, float] = {}

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[Answer]:
        """Ask for each sample, several at once; see the adapter contract.

        Raises:
            RunStopped: the key is refused, there is no credit, or the service is down.
            AdapterError: one sample got no answer.
        """
        pictures = {id(i): _picture(s.image_path, i) for s, i in zip(samples, images, strict=True)}
        questions = [
            self._threads.submit(self._answer, s, *pictures[id(i)]) for s, i in zip(samples, images, strict=True)
        ]
        # All are waited for, so that what has been paid for is kept when one fails.
        failures = [e for q in questions if (e := q.exception()) is not None]
        for error in sorted(failures, key=lambda e: not isinstance(e, RunStopped)):
            raise error
        return [q.result() for q in questions]

    def usage(self) -> dict[str, float]:
        """Since the last call: requests, answers that were kept, seconds of waiting, estimated dollars."""
        with self._lock:
            used, self._used = self._used, {}
        return used

    def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _answer(self, sample: Sample, content: bytes, kind: str) -> Answer:
        digest = hashlib.sha256(content).hexdigest()
        key = hashlib.sha256(
            json.dumps([self.endpoint, self.model, "segment", sample.expression, kind, digest]).encode()
        ).hexdigest()
        path = self._cache / key[:2] / f"{key}.json"
        response = _kept(path)
        if response is None:
            response = self._ask(sample, content, kind)
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(response), encoding="utf-8")
        else:
            self._count({"answers kept from before": 1})
        return to_answer(response, sample.height, sample.width)

    def _ask(self, sample: Sample, content: bytes, kind: str) -> dict[str, Any]:
        """One question to the service, with its attempts; returns what is worth keeping of the answer."""
        body: dict[str, Any] = {
            "image_url": f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}",
            "object": sample.expression,
            "stream": False,
        }
        if self.model:
            body["model"] = self.model
        began = time.monotonic()
        try:
            response = self._http.request(
                "POST",
                f"{self.endpoint}/segment",
                body=json.dumps(body).encode(),
                headers={"Content-Type": "application/json", **({"X-Moondream-Auth": self._key} if self._key else {})},
                timeout=urllib3.Timeout(self._timeout),
                retries=_patience(self._retries),
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise self._no_answer(f"no answer from {self.endpoint}: {_first_cause(error)}") from None
        finally:
            self._count({"seconds of waiting": time.monotonic() - began})
        if response.status in FATAL or 300 <= response.status < 400:
            why = FATAL.get(response.status, "it points elsewhere, where the key is not sent")
            raise RunStopped(f"{self.endpoint} answers {response.status}: {why}{self._said(response.data)}")
        if response.status != 200:
            error_text = f"{self.endpoint} answers {response.status}{self._said(response.data)}"
            # 4xx is about this question; everything else has been tried often enough.
            raise (
                AdapterError(error_text)
                if response.status < 500 and response.status not in AGAIN
                else (self._no_answer(error_text))
            )
        try:
            found = json.loads(response.data) if len(response.data) <= LARGEST_ANSWER else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._no_answer(f"{self.endpoint} answers 200 with what is no JSON object{self._said(response.data)}")
        with self._lock:
            self._in_a_row = 0
        self._count({"requests answered": 1, "estimated cost (USD)": self.price_per_1000 / 1000})
        names = ("path", "bbox", "parse_error", "error", "finish_reason", "request_id", "metrics")
        return {k: found[k] for k in names if k in found}

    def _no_answer(self, text: str) -> AdapterError:
        """The error of a question that got no answer: after several in a row, the one that ends the run."""
        with self._lock:
            self._in_a_row += 1
            down = self._in_a_row >= DOWN_AFTER
        if down:
            return RunStopped(f"{text}; {DOWN_AFTER} samples in a row: the service is down, run the same command later")
        return AdapterError(text)

    def _said(self, content: bytes) -> str:
        text = " ".join(content[:300].decode("utf-8", "replace").split())
        # A service may repeat the key in its error.
        hidden = text.replace(self._key, "***") if self._key else text
        return f" ({hidden[:200]})" if hidden else ""

    def _count(self, more: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in more.items():
                self._used[name] = self._used.get(name, 0.0) + value


def to_answer(response: Mapping[str, Any], height: int, width: int) -> Answer:
    """A response of `/segment` as a mask: its path, drawn in its box.

    What is no outline (no path, no box, a box without area, a path that cannot be read) is an empty mask with a note.
    """
    raw = json.dumps({k: response.get(k) for k in ("path", "bbox", "finish_reason") if k in response})
    empty = Mask.empty(height, width)
    path, box = response.get("path"), response.get("bbox")
    if response.get("parse_error") or response.get("error"):
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
    try:
        mask = fill_path(path, (left, top, right, bottom), height, width)
    except MaskError:
        return Answer(empty, note="a path that cannot be read", raw=raw)
    cut = response.get("finish_reason") == "length"
    return Answer(mask, note="the path was cut off at the limit of tokens" if cut else "", raw=raw)


def _patience(retries: int) -> urllib3.Retry:
    return urllib3.Retry(
        total=retries,
        allowed_methods=None,
        status_forcelist=AGAIN,
        backoff_factor=0.5,
        backoff_max=LONGEST_WAIT_SECONDS,
        backoff_jitter=0.2,
        respect_retry_after_header=True,
        retry_after_max=LONGEST_WAIT_SECONDS,
        raise_on_status=False,
        redirect=0,
    )


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.username or parts.password or parts.query:
        raise AdapterError(f"the endpoint may hold no user, password or query; the key is read from {KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AdapterError(f"{endpoint!r} is no endpoint; write https://HOST/v1")
    if parts.scheme == "http" and not _is_here(endpoint):
        raise AdapterError(f"{endpoint} would carry the key and the pictures in the open; use https")
    return endpoint.rstrip("/")


def _is_here(endpoint: str) -> bool:
    return urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1")


def _picture(path: str, image: Image.Image) -> tuple[bytes, str]:
    """The file as it is where the service will see the same picture in it, else a PNG of what refbench opened."""
    if path and Path(path).is_file():
        with Image.open(path) as opened:
            kind = AS_IT_IS.get(opened.format or "")
            upright = opened.getexif().get(274, 1) == 1 if opened.format == "JPEG" else not opened.info.get("exif")
            plain = opened.mode in ("RGB", "L")
        if kind and upright and plain:
            return Path(path).read_bytes(), kind
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), "image/png"


def _kept(path: Path) -> dict[str, Any] | None:
    """An answer that was kept; one that is damaged is asked for again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _first_cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"[:300]
