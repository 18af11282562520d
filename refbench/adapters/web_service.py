"""A model behind HTTP: retries temporary errors, stops on permanent ones, and never exposes the key."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from PIL import Image

from refbench.errors import AdapterError, RunStopped
from refbench.records import Answer, Question
from refbench.storage.files import atomic_file, home
from refbench.storage.images import original_for_web

FATAL = {
    401: "the key is refused",
    402: "the account has no credit left",
    403: "the key may not do this",
    404: "there is no such service at the endpoint",
}
AGAIN = (408, 425, 429, 500, 502, 503, 504, 529)
# Between two attempts; a longer Retry-After is cut to this.
LONGEST_WAIT_SECONDS = 120
# After this many samples in a row without an answer, the service counts as down.
DOWN_AFTER = 3
LARGEST_ANSWER = 8 * 2**20


class WebService:
    """A service that accepts and returns JSON. Its responses are cached, so that no request is paid for twice.

    Args:
        name: name of the adapter, for error messages, the cache folder and the names of threads.
        endpoint: base address; it must use https, or http on this machine.
        key_variable: environment variable with the key. The key is sent in the header `key_header` and never appears in
            files, logs or errors.
        concurrency: number of simultaneous requests.
        timeout: timeout of one attempt in seconds.
        retries: number of further attempts after a failure; `Retry-After` is obeyed, up to 120 s.
        price: price of an answer in dollars, for the estimated cost.
        cache: folder for cached responses, by default in $REFBENCH_HOME/cache.

    Raises:
        AdapterError: there is no key, or the endpoint would expose it.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        key_variable: str,
        key_header: str,
        concurrency: int,
        timeout: float,
        retries: int,
        price: float,
        cache: Path | None,
    ) -> None:
        self.endpoint = _checked(endpoint, key_variable)
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise AdapterError(
                f"{key_variable} does not contain a valid key; a key is one word of printable ASCII characters"
            )
        if not self._key and not _is_here(self.endpoint):
            raise AdapterError(
                f"{name} needs a key; set the environment variable {key_variable} (options cannot hold keys, "
                "because they are stored with the run)"
            )
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise AdapterError("concurrency and timeout must be positive, and retries must not be negative")
        self._key_header = key_header
        self._price = price
        self._cache = (Path(cache) if cache else home() / "cache" / name).expanduser()
        self._timeout = timeout
        self._retries = retries
        self._http = urllib3.PoolManager(maxsize=concurrency, block=True)
        self.threads = ThreadPoolExecutor(concurrency, name)
        self._lock = threading.Lock()
        self._unanswered: set[str] = set()
        self._answered: tuple[str, Mapping[str, Any]] | None = None
        self._ended: RunStopped | None = None
        self._used: dict[str, float] = {}

    def usage(self) -> dict[str, float]:
        """Usage since the last call: requests, cached answers, waiting time in seconds, estimated cost in dollars."""
        with self._lock:
            used, self._used = self._used, {}
        return used

    def close(self) -> None:
        """Stop the threads and close the connections."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        question: Mapping[str, Any],
        keep: tuple[str, ...],
        is_answer: Callable[[Mapping[str, Any]], bool],
    ) -> dict[str, Any]:
        """The response to a request, from the cache or from the service. Only the fields in `keep` are cached.

        `question` identifies the request: everything in `body` except the image, and the sha256 of the image. A
        response that `is_answer` rejects (such as a 200 that reports an error) is neither cached nor counted as paid.

        Raises:
            RunStopped: the key is refused, there is no credit, or the service is down.
            AdapterError: this request got no answer.
        """
        digest = hashlib.sha256(json.dumps([self.endpoint, path, question], sort_keys=True).encode()).hexdigest()
        place = self._cache / digest[:2] / f"{digest}.json"
        found = _kept(place)
        if found is not None:
            self._count({"answers kept from before": 1})
            with self._lock:
                self._answered = self._answered or (path, body)
            return found
        answer = self._post(path, body, digest)
        if not is_answer(answer):
            raise AdapterError(
                f"{self.endpoint} returned status 200 without an answer{self._said(json.dumps(answer).encode())}"
            )
        self._count({"requests answered": 1, "estimated cost (USD)": self._price})
        answer = {k: answer[k] for k in keep if k in answer}
        with atomic_file(place) as temporary:
            temporary.write_text(json.dumps(answer), encoding="utf-8")
        return answer

    def answer_all(
        self,
        answer: Callable[[Question, bytes, str], Answer],
        samples: Sequence[Question],
        images: Sequence[Image.Image],
    ) -> list[Answer]:
        """Call `answer(sample, image, media type)` for each sample, several at once; each image is encoded once.

        Waits for all calls, so that paid responses are cached even if one call fails.

        Raises:
            The first error; an error that ends the run takes precedence.
        """
        pictures = {id(i): picture_bytes(s.image_path, i) for s, i in zip(samples, images, strict=True)}
        asked = [self.threads.submit(answer, s, *pictures[id(i)]) for s, i in zip(samples, images, strict=True)]
        failures = [e for question in asked if (e := question.exception()) is not None]
        for error in sorted(failures, key=lambda e: not isinstance(e, RunStopped)):
            raise error
        return [question.result() for question in asked]

    def _post(self, path: str, body: Mapping[str, Any], digest: str) -> dict[str, Any]:
        """Send one request to the service, with retries."""
        if self._ended is not None:
            # Another request of the batch has already ended the run.
            raise self._ended
        began = time.monotonic()
        try:
            response = self._request(path, body, self._retries)
        except urllib3.exceptions.HTTPError as error:
            raise self._no_answer(f"no response from {self.endpoint}: {_first_cause(error)}", digest) from None
        finally:
            self._count({"seconds of waiting": time.monotonic() - began})
        if response.status in FATAL or 300 <= response.status < 400:
            why = FATAL.get(response.status, "it redirects to an address to which the key is not sent")
            self._ended = RunStopped(f"{self.endpoint} answers {response.status}: {why}{self._said(response.data)}")
            raise self._ended
        if response.status == 400 and b"API_KEY_INVALID" in response.data:
            # Google's word for a refused key.
            self._ended = RunStopped(f"{self.endpoint} answers 400: {FATAL[401]}{self._said(response.data)}")
            raise self._ended
        if response.status != 200:
            error_text = f"{self.endpoint} answers {response.status}{self._said(response.data)}"
            # 4xx is about this question; everything else has been tried often enough.
            raise (
                AdapterError(error_text)
                if response.status < 500 and response.status not in AGAIN
                else (self._no_answer(error_text, digest))
            )
        try:
            found = json.loads(response.data) if len(response.data) <= LARGEST_ANSWER else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            said = self._said(response.data)
            raise self._no_answer(
                f"{self.endpoint} returned status 200, but the body is not a JSON object{said}", digest
            )
        with self._lock:
            self._unanswered.clear()
            self._answered = path, body
        return found

    def _no_answer(self, text: str, digest: str) -> AdapterError:
        """The error for a request without a response; after several such requests in a row, it ends the run.

        Before ending the run, this method repeats an earlier request that succeeded. If the repeated request succeeds
        again, the service is not down, so the new requests are the cause of the failures.
        """
        with self._lock:
            self._unanswered.add(digest)
            down = len(self._unanswered) >= DOWN_AFTER
            known = self._answered
        if not down:
            return AdapterError(text)
        if known is not None and self._still_answers(*known):
            with self._lock:
                self._unanswered.clear()
            return AdapterError(text)
        self._ended = RunStopped(
            f"{text}; {DOWN_AFTER} samples in a row: the service is down, run the same command later"
        )
        return self._ended

    def _still_answers(self, path: str, body: Mapping[str, Any]) -> bool:
        try:
            answers = self._request(path, body, retries=0).status == 200
            if answers:
                self._count({"requests answered": 1, "estimated cost (USD)": self._price})
            return answers
        except urllib3.exceptions.HTTPError:
            return False

    def _request(self, path: str, body: Mapping[str, Any], retries: int) -> urllib3.BaseHTTPResponse:
        return self._http.request(
            "POST",
            f"{self.endpoint}/{path}",
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **({self._key_header: self._key} if self._key else {})},
            timeout=urllib3.Timeout(self._timeout),
            retries=_patience(retries),
            redirect=False,
        )

    def _said(self, content: bytes) -> str:
        text = " ".join(content[:100_000].decode("utf-8", "replace").split())
        # A service may repeat the key in its error: hidden before anything is cut off.
        hidden = text.replace(self._key, "***") if self._key else text
        return f" ({hidden[:200]})" if hidden else ""

    def _count(self, more: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in more.items():
                self._used[name] = self._used.get(name, 0.0) + value


class ServiceAdapter:
    """An adapter for a service. Subclasses implement `_answer` for one sample; this class asks for several at once."""

    def __init__(self, service: WebService) -> None:
        self._service = service

    def segment_samples(self, samples: Sequence[Question], images: Sequence[Image.Image]) -> list[Answer]:
        """Ask the service about each sample, several at once; see the interface of adapters.

        Raises:
            RunStopped: the key is refused, there is no credit, or the service is down.
            AdapterError: a sample got no answer, or an invalid one.
        """
        return self._service.answer_all(self._answer, samples, images)

    def usage(self) -> dict[str, float]:
        """See `WebService.usage`."""
        return self._service.usage()

    def close(self) -> None:
        """Stop the threads and close the connections."""
        self._service.close()

    def _answer(self, sample: Question, content: bytes, kind: str) -> Answer:
        """The answer for one sample. `content` is the image file as bytes, and `kind` its media type."""
        raise NotImplementedError


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


def _checked(endpoint: str, key_variable: str) -> str:
    parts = urlsplit(endpoint)
    if parts.username or parts.password or parts.query:
        raise AdapterError(
            f"the endpoint must not contain a user name, a password or a query; the key is read from {key_variable}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AdapterError(f"{endpoint!r} is not a valid endpoint; write it as https://HOST/v1")
    if parts.scheme == "http" and not _is_here(endpoint):
        raise AdapterError(f"{endpoint} would send the key and the images unencrypted; use https")
    return endpoint.rstrip("/")


def _is_here(endpoint: str) -> bool:
    return urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1")


def picture_bytes(path: str, image: Image.Image) -> tuple[bytes, str]:
    """The original file if the service decodes it to the same image as refbench; otherwise, the image opened by
    refbench, encoded as PNG.
    """
    original = original_for_web(path)
    if original is not None:
        return original
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), "image/png"


def _kept(path: Path) -> dict[str, Any] | None:
    """A cached answer; None if it is damaged, so that the request is sent again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _first_cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"[:300]
