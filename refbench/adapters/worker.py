"""`worker`: a segmenter in a child process with its own interpreter; messages are lines of JSON.

If the child process misbehaves (prints, hangs, crashes, answers twice or sends invalid data), the result is a failed
sample or an error that describes the problem. The child is then killed with all its subprocesses and started again.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from refbench.adapters.environments import interpreter
from refbench.errors import AdapterError, MaskError, RunStopped
from refbench.masks.mask import Mask
from refbench.records import Answer, Sample
from refbench.storage.files import file_sha256, path_sha256
from refbench.storage.images import image_bytes
from refbench.storage.secrets import means_secret

PROTOCOL = 1
SDK = Path(__file__).parent / "workers" / "sdk"
LONGEST_LINE = 64 * 2**20
# An image that kills the worker costs one restart per expression; this many restarts in a row have another cause.
DEATHS_IN_A_ROW = 16
BACK_OFF_SECONDS = 0.25
LONGEST_BACK_OFF_SECONDS = 8.0
LISTEN_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
LOG_LINES = 40
# The environment variables that the worker inherits, and the beginnings of names of others: where programs, libraries,
# caches and certificates are, and how many threads are used. Keys are in none of them.
PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME", "NO_PROXY", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
PASSED_ON_BEGINNINGS = (
    "LC_", "CUDA_", "NVIDIA_", "CUBLAS_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_", "PYTORCH_", "NCCL_",
)  # fmt: skip
# Passed on without a user and a password.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Worker:
    """Your own script in its own environment (`refbench new-adapter NAME --worker` creates one).

    Args:
        script: the worker, a Python file that serves a segmenter with `worker_sdk`.
        python: interpreter of the worker; by default the interpreter of `env`, or the one that runs refbench if `env`
            is not given.
        env: an environment that was built with `refbench env build`.
        device: device of the model. On CUDA, the worker sees only this device, as cuda:0.
        batch_size: number of expressions per request; 0 uses the number that the worker states.
        timeout: maximum time in seconds for an answer, per expression of a request.
        start_timeout: maximum time in seconds until the worker is ready; loading may include a download of weights.
        offline: if False, libraries can download files from the hub.
        deterministic: as for the run; the worker fixes seeds and uses deterministic kernels if it can.
        inherit: names of further environment variables that the worker gets, separated by commas, for example HF_TOKEN.
        config: all other options, passed to the worker as strings.
    """

    needs_images = True
    opens_images = True

    def __init__(
        self,
        script: Path,
        python: str = "",
        env: str = "",
        device: str = "cpu",
        batch_size: int = 0,
        timeout: float = 600.0,
        start_timeout: float = 1800.0,
        offline: bool = True,
        deterministic: bool = False,
        inherit: str = "",
        **config: str,
    ) -> None:
        script = Path(script).absolute()
        if not script.is_file():
            raise AdapterError(f"the worker script {script} does not exist; pass its path with -o script=FILE")
        command = python or (str(interpreter(env)) if env else sys.executable)
        self._child = _Child(script, command, device, config, start_timeout, offline, deterministic, inherit)
        self._timeout = timeout
        ready = self._child.start()
        self.name = str(ready.get("model") or script.stem)
        self.mode = str(ready.get("mode") or "")
        self.revision = str(ready.get("revision") or "")
        self.weights_sha256 = str(ready.get("weights_sha256") or "")
        self.batch_size = max(0, batch_size) or max(1, int(ready.get("max_batch") or 1))
        self.packages = {f"worker {k}": str(v) for k, v in dict(ready.get("versions") or {}).items()}
        code = file_sha256(script) + path_sha256(SDK, "*.py") + self.revision
        self.code_sha256 = hashlib.sha256(code.encode()).hexdigest()
        self._number = 0
        self._deaths = 0
        self._remarks = [f"the worker does not use the option {key!r}" for key in ready.get("unread") or ()]

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Image.Image | None]) -> list[Answer]:
        """Ask the worker; see the interface of adapters.

        Raises:
            AdapterError: the worker crashed, hung, broke the protocol, or failed on a sample.
            RunStopped: the worker failed several times in a row, cannot be started again, or stops the run.
            MemoryError: the worker ran out of memory.
        """
        self._number += 1
        number = str(self._number)
        items = [_item(s, image) for s, image in zip(samples, images, strict=True)]
        try:
            if not self._child.alive:
                time.sleep(min(LONGEST_BACK_OFF_SECONDS, BACK_OFF_SECONDS * 2**self._deaths))
                self._start_again()
            deadline = time.monotonic() + self._timeout * len(samples)
            self._child.tell({"op": "predict", "id": number, "items": items}, deadline)
            results = self._collect(number, samples, deadline)
        except _Broken as error:
            self._child.kill()
            self._deaths += 1
            self._remarks.append(f"the worker has to be started again: {str(error)[:300]}")
            if self._deaths >= DEATHS_IN_A_ROW:
                raise RunStopped(
                    f"the worker failed {self._deaths} times in a row without an answer: {error}"
                ) from None
            raise AdapterError(str(error)) from None
        self._deaths = 0
        return [_answer(s, results[s.sample_id]) for s in samples]

    def remarks(self) -> list[str]:
        """Remarks since the last call: restarts, and options that the worker never used."""
        said, self._remarks = self._remarks, []
        return said

    def begin_shard(self, seed: int) -> None:
        """Seed the random generators of the worker, so that no shard depends on earlier ones."""
        if self._child.alive:
            try:
                self._child.tell({"op": "seed", "seed": seed}, time.monotonic() + PATIENCE_SECONDS)
            except _Broken:
                # It may have read a part of the message; it is started again for the next samples.
                self._child.kill()

    def _start_again(self) -> None:
        try:
            self._child.start()
        except AdapterError as error:
            # It did start once: what is wrong now is not a sample's fault.
            raise RunStopped(f"the worker cannot be restarted: {error}") from None

    def _collect(self, number: str, samples: Sequence[Sample], deadline: float) -> dict[str, dict[str, Any]]:
        """Results by sample; any other message from the worker is an error."""
        wanted = {s.sample_id for s in samples}
        results: dict[str, dict[str, Any]] = {}
        while True:
            message = self._child.hear(deadline)
            kind = message.get("type")
            if kind in ("log", "progress", "pong"):
                continue
            if kind == "done" and message.get("id") == number:
                break
            if kind == "error":
                raise _Broken(f"the worker reports: {message.get('message')}")
            sid = message.get("sid")
            if kind != "result" or message.get("id") != number or sid not in wanted:
                raise _Broken(f"the worker sent an unexpected message: {str(message)[:200]}")
            if sid in results:
                raise _Broken(f"the worker returned two answers for {sid}")
            results[str(sid)] = message
        missing = sorted(wanted - results.keys())
        if missing:
            raise _Broken(f"the worker returned no answer for {missing[0]}")
        return results

    def close(self) -> None:
        """Ask the worker to end, and kill it if it does not."""
        self._child.end()


class _Broken(Exception):
    """The child process is unusable and must be started again."""


class _Child:
    """The child process, its two pipes and its log."""

    def __init__(
        self,
        script: Path,
        command: str,
        device: str,
        config: Mapping[str, str],
        start_timeout: float,
        offline: bool,
        deterministic: bool,
        inherit: str,
    ) -> None:
        self.script = script
        self.command = command
        self.config = dict(config)
        self.start_timeout = start_timeout
        self.environment = inherited(inherit)
        self.environment |= {"PYTHONNOUSERSITE": "1", "PYTHONPATH": str(SDK), "PYTHONUNBUFFERED": "1"}
        self.deterministic = deterministic
        if deterministic:
            self.environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if offline:
            self.environment["HF_HUB_OFFLINE"] = "1"
        self.device = device
        if device.startswith("cuda"):
            # It sees its own device alone, so that a hard-coded `.cuda()` lands there.
            number = device.partition(":")[2] or "0"
            if not number.isdecimal():
                raise AdapterError(f"{device!r} is not a CUDA device; write cuda or cuda:0")
            index = int(number)
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            visible = [d for d in (hidden or "").split(",") if d]
            if hidden is not None and index >= len(visible):
                raise AdapterError(
                    f"the device {device} does not exist; the number of devices in CUDA_VISIBLE_DEVICES is "
                    f"{len(visible)}"
                )
            self.environment["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)
            self.device = "cuda:0"
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: queue.Queue[dict[str, Any] | _Broken] = queue.Queue()
        self._log: deque[str] = deque(maxlen=LOG_LINES)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> dict[str, Any]:
        """Start the process and wait until its model is loaded; returns what it reports about itself."""
        self.kill()
        self._log.clear()
        self._heard = queue.Queue()
        try:
            self._process = subprocess.Popen(
                [self.command, "-u", str(self.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment,
                start_new_session=True,
            )
        except OSError as error:
            raise AdapterError(
                f"the Python interpreter {self.command} of the worker cannot be started: {error.strerror}; pass "
                "another one with -o python=PATH, or build the environment of the worker: refbench env build NAME"
            ) from error
        for target in (_read_messages, _read_log):
            threading.Thread(target=target, args=(self._process, self._heard, self._log), daemon=True).start()
        # The pipe holds little; a worker that does not read must not block this process.
        os.set_blocking(_fileno(self._process.stdin), False)
        deadline = time.monotonic() + self.start_timeout
        try:
            self.tell(
                {
                    "op": "init",
                    "protocol": PROTOCOL,
                    "config": self.config,
                    "device": self.device,
                    "seed": 0,
                    "deterministic": self.deterministic,
                },
                deadline,
            )
            while (message := self.hear(deadline)).get("type") in ("log", "progress"):
                continue
        except _Broken as error:
            self.kill()
            raise AdapterError(f"the worker {self.script} did not start: {error}") from None
        if message.get("type") != "ready" or message.get("protocol", PROTOCOL) != PROTOCOL:
            self.kill()
            said = str(message.get("message") or message)[:2000]
            raise AdapterError(f"the worker {self.script} did not start: {said}{self._last_lines()}")
        return message

    def tell(self, message: Mapping[str, Any], deadline: float) -> None:
        """Send a message; the worker must read it before the deadline, in seconds of `time.monotonic`."""
        process = self._process
        if process is None:
            raise _Broken("the worker is not running")
        left = memoryview(json.dumps(message).encode("ascii") + b"\n")
        channel = _fileno(process.stdin)
        ready = select.poll()
        ready.register(channel, select.POLLOUT)
        try:
            while left:
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise _Broken(f"the worker did not read a message before the timeout{self._last_lines()}")
                if ready.poll(1000 * min(seconds, LISTEN_SECONDS)):
                    left = left[os.write(channel, left) :]
                elif not self.alive:
                    raise self._ended()
        except OSError:
            raise self._ended() from None

    def hear(self, deadline: float) -> dict[str, Any]:
        """The next message, or the reason why there is none."""
        while True:
            left = deadline - time.monotonic()
            try:
                message = self._heard.get(timeout=max(0.0, min(left, LISTEN_SECONDS)))
                break
            except queue.Empty:
                # A process that it left behind may hold the channel open after its death.
                if not self.alive:
                    raise self._ended() from None
                if left <= LISTEN_SECONDS:
                    raise _Broken(f"the worker did not answer before the timeout{self._last_lines()}") from None
        if isinstance(message, _Broken):
            raise self._ended() if not str(message) else message
        return message

    def _ended(self) -> _Broken:
        code: int | None = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(PATIENCE_SECONDS)
        how = "closed its channel" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return _Broken(f"the worker {how}{self._last_lines()}")

    def _last_lines(self) -> str:
        # Its reader may be a moment behind.
        time.sleep(0.05)
        lines = [line for line in list(self._log)[-3:] if line.strip()]
        return f"; its last words: {' | '.join(lines)[-600:]}" if lines else ""

    def end(self) -> None:
        if self.alive and self._process is not None:
            with contextlib.suppress(_Broken):
                self.tell({"op": "shutdown"}, time.monotonic() + PATIENCE_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process and all its children."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # The reader threads close stdout and stderr: a subprocess in its own session may keep them open for long.
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def inherited(more: str = "") -> dict[str, str]:
    """The environment variables that a worker gets.

    Args:
        more: names of further variables, separated by commas.

    Raises:
        AdapterError: one of `more` is not set.
    """
    given = [name.strip() for name in more.split(",") if name.strip()]
    missing = [name for name in given if name not in os.environ]
    if missing:
        raise AdapterError(f"the environment variable {missing[0]} is not set, but -o inherit={more} passes it on")
    found = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or (name.startswith(PASSED_ON_BEGINNINGS) and not means_secret(name))
    }
    proxies = {name: re.sub(r"(?<=://)[^/@]+@", "", os.environ[name]) for name in PROXIES if name in os.environ}
    return found | proxies | {name: os.environ[name] for name in given}


def _fileno(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise _Broken("the worker is not running")
    return stream.fileno()


def _read_messages(process: subprocess.Popen[bytes], heard: queue.Queue[Any], log: deque[str]) -> None:
    """Read messages of the worker, one per line, and queue them; when the worker closes its output, queue an empty
    `_Broken`.
    """
    if process.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        while line := process.stdout.readline(LONGEST_LINE):
            if not line.endswith(b"\n"):
                heard.put(_Broken("the worker sent a line without an end") if len(line) == LONGEST_LINE else _Broken())
                return
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                heard.put(_Broken(f"the worker sent a line that is not a message: {line[:80]!r}"))
                return
            heard.put(message)
    heard.put(_Broken())
    with contextlib.suppress(OSError):
        process.stdout.close()


def _read_log(process: subprocess.Popen[bytes], heard: queue.Queue[Any], log: deque[str]) -> None:
    """Read the stderr of the child, which would block if the pipe were full; the last lines are kept for error
    messages.
    """
    if process.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError), process.stderr:
        while line := process.stderr.readline(2**16):
            log.append(line.decode("utf-8", "replace").rstrip())


def _item(sample: Sample, image: Image.Image | None) -> dict[str, Any]:
    item: dict[str, Any] = {
        "sid": sample.sample_id,
        "size": [sample.height, sample.width],
        # As the annotators wrote it too: some published loops feed that.
        "expression": sample.expression,
        "raw_expression": sample.raw_expression,
        "tags": list(sample.tags),
    }
    if sample.image_path and Path(sample.image_path).is_file():
        return {**item, "image": sample.image_path}
    if sample.image_path:
        # The image is in an archive, which the worker cannot open; a missing or broken image is reported here.
        content = image_bytes(sample.image_path, sample.height, sample.width)
        return {**item, "image_b64": base64.b64encode(content).decode("ascii")}
    if image is None:
        raise AdapterError(f"{sample.sample_id} has no image")
    # An image that is not a file, as `refbench check-adapter` makes them.
    file = io.BytesIO()
    image.save(file, "PNG")
    return {**item, "image_b64": base64.b64encode(file.getvalue()).decode("ascii")}


def _answer(sample: Sample, result: Mapping[str, Any]) -> Answer:
    if result.get("status") == "error":
        message = str(result.get("message") or "no reason given")
        if result.get("kind") == "stop":
            raise RunStopped(f"the worker asked to stop the run: {message}")
        if result.get("kind") == "oom":
            raise MemoryError(f"the worker ran out of memory: {message}")
        raise AdapterError(f"the worker failed: {message}")
    instances = result.get("instances") or []
    try:
        return Answer(
            _mask_of(sample, result["mask"]),
            no_target=result.get("no_target"),
            score=result.get("score"),
            instances=[(_mask_of(sample, one["mask"]), float(one["score"])) for one in instances],
            note=str(result.get("note") or ""),
            raw=str(result.get("raw") or ""),
        )
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error, MaskError) as error:
        raise AdapterError(f"the mask from the worker cannot be read: {type(error).__name__}: {error}") from None


def _mask_of(sample: Sample, mask: Mapping[str, Any]) -> Mask:
    height, width = sample.height, sample.width
    if list(mask["size"]) != [height, width]:
        raise ValueError(
            f"the mask must have the same size as its image, {[height, width]} (height, width), got {mask['size']}"
        )
    if mask["enc"] == "coco_rle":
        return Mask.from_rle({"size": [height, width], "counts": mask["data"]})
    if mask["enc"] != "bits+zlib":
        raise ValueError(f"unknown encoding {mask['enc']!r}")
    wanted = (height * width + 7) // 8
    # Decompress no more than the mask can hold: the worker's data is not trusted.
    unfolded = zlib.decompressobj()
    bits = unfolded.decompress(base64.b64decode(mask["data"], validate=True), wanted + 1)
    if len(bits) != wanted:
        raise ValueError(
            f"the decompressed mask must have {wanted} bytes, with one bit for each of the {height} x {width} pixels"
        )
    pixels = np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width).reshape(height, width)
    return Mask.from_array(pixels.astype(bool))
