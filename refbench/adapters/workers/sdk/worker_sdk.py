"""Serves a segmenter to refbench from an environment of its own; needs Python 3.7, numpy and Pillow, nothing else.

A worker is a script that refbench starts with the interpreter of that environment:

    from worker_sdk import Answer, serve

    class Mine:
        name = "mine"                        # under which the run is stored
        def __init__(self, config, device):  # config: the `-o key=value` of the run, as texts
            ...
        def segment(self, images, expressions):
            # PIL RGB pictures and texts, lists of one length -> a list of bool (H, W) arrays, or Answers
            ...

    if __name__ == "__main__":
        serve(Mine)

Optional attributes: `max_batch` (expressions a call, default 1), `text` ("raw": the expressions as annotators wrote
them), `tags` (True: `segment` is given the tags of each sample as a third list), `mode` ("forced" or "generate"),
`weights_sha256` (see `sha256_of`), `revision` (see `git_revision`).

refbench and the worker exchange lines of JSON on the descriptors that were standard input and output when the worker
began. Both are redirected afterwards, so whatever a library prints goes to the log and disturbs nothing.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import platform
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import zlib

import numpy as np
from PIL import Image, ImageOps

PROTOCOL = 1
# Of other formats Pillow starts another program for some (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
VERSIONS_OF = ("numpy", "Pillow", "torch", "torchvision", "transformers", "timm", "mmcv", "mmcv-full", "peft")


class Answer(object):
    """A mask with the model's other outputs: a confidence, "no target", several instances, a note.

    `mask` is a bool (H, W) array of the picture's size, or a tensor. `note` is a short phrase that is counted over the
    run ("text cut to 20 tokens"), `raw` what the model itself said, as text.
    """

    def __init__(self, mask, score=None, no_target=None, instances=(), note="", raw=""):
        self.mask = mask
        self.score = score
        self.no_target = no_target
        self.instances = list(instances)
        self.note = note
        self.raw = raw


def nothing_written(image, what, said):
    """The answer of a model that wrote no mask: an empty one."""
    note = "no %s in the answer" % what
    return Answer(np.zeros((image.height, image.width), bool), no_target=True, note=note, raw=said)


def sha256_of(*paths):
    """sha256 over files and the files below folders, so that a run tells which weights it used.

    The folder's own name and names that begin with a dot are ignored: downloads keep their metadata there.
    """
    digest = hashlib.sha256()
    for path in paths:
        for name in _files(path):
            if os.path.isdir(path):
                digest.update(os.path.relpath(name, path).encode("utf-8"))
            with open(name, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):  # noqa: B023 (used at once)
                    digest.update(block)
    return digest.hexdigest()


def _files(path):
    """A file, or all files below a folder, in order."""
    if not os.path.isdir(path):
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def serve(make):
    """Serve the segmenter that `make(config, device)` returns until refbench says shutdown, or is gone."""
    _Server(make).run()


def to_rgb(image):
    """Upright 8-bit RGB, as refbench itself opens pictures."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        deep = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(np.clip(deep >> 8, 0, 255).astype(np.uint8))
    return upright.convert("RGB")


class StopRun(Exception):
    """Raised by a segmenter that cannot continue: the run ends, and the same command resumes it later."""


def git_revision(folder):
    """What code a checkout holds, for the attribute `revision`: its commit, with "-changed" if files of it were edited;
    without git a sha256 over its Python files."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        return commit + ("-changed" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    return "sha256:" + sha256_of(*[name for name in _files(folder) if name.endswith(".py")])


def _git(folder, *words):
    try:
        done = subprocess.run(("git", "-C", folder) + words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


class _Options(dict):
    """The options of a run, and which of them have been read; copying or iterating reads all of them."""

    def __init__(self, values):
        super(_Options, self).__init__(values)
        self.read = set()

    def get(self, key, default=None):
        self.read.add(key)
        return super(_Options, self).get(key, default)

    def __getitem__(self, key):
        self.read.add(key)
        return super(_Options, self).__getitem__(key)

    def __contains__(self, key):
        self.read.add(key)
        return super(_Options, self).__contains__(key)

    def pop(self, key, *default):
        self.read.add(key)
        return super(_Options, self).pop(key, *default)

    def __iter__(self):
        self.read.update(super(_Options, self).keys())
        return super(_Options, self).__iter__()

    def keys(self):
        self.read.update(super(_Options, self).keys())
        return super(_Options, self).keys()

    def items(self):
        self.read.update(super(_Options, self).keys())
        return super(_Options, self).items()


class _BadInput(Exception):
    """The fault is the picture's, not the model's."""


class _Server(object):
    def __init__(self, make):
        self.make = make
        self.model = None
        self.cancelled = set()
        self.asked = queue.Queue()
        self.lock = threading.Lock()
        self.picture = (None, None)
        # Keep the two channels for ourselves; prints of libraries and of their child processes go to the log.
        self.incoming = os.fdopen(os.dup(0), "rb")
        self.outgoing = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.stdout.flush()
        os.dup2(2, 1)

    def run(self):
        reader = threading.Thread(target=self.read)
        reader.daemon = True
        reader.start()
        while True:
            message = self.asked.get()
            op = message.get("op")
            if op == "shutdown":
                close = getattr(self.model, "close", None)
                if close is not None:
                    close()
                return
            if op == "init":
                self.init(message)
            elif op == "seed":
                _seed(int(message.get("seed") or 0))
            elif op == "predict":
                self.predict(message)
            else:
                self.say({"type": "error", "kind": "fatal", "message": "unknown op %r" % (op,)})

    def read(self):
        """Handle messages that must not wait for the model, and end the process when refbench is gone."""
        for line in self.incoming:
            try:
                message = json.loads(line.decode("utf-8"))
            except ValueError:
                self.say({"type": "error", "kind": "fatal", "message": "a line that is no JSON"})
                continue
            if message.get("op") == "ping":
                self.say({"type": "pong"})
            elif message.get("op") == "cancel":
                self.cancelled.add(message.get("id"))
            else:
                self.asked.put(message)
        # End the model's subprocesses too; refbench made this process the leader of its own process group.
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(0)

    def say(self, message):
        line = json.dumps(message, allow_nan=False).encode("utf-8") + b"\n"
        with self.lock:
            self.outgoing.write(line)
            self.outgoing.flush()

    def init(self, message):
        if message.get("protocol") != PROTOCOL:
            text = "this worker speaks protocol %d, refbench %r" % (PROTOCOL, message.get("protocol"))
            self.say({"type": "error", "kind": "fatal", "message": text})
            return
        try:
            if message.get("deterministic"):
                _settle(int(message.get("seed") or 0))
            config = _Options(message.get("config") or {})
            self.model = self.make(config, message.get("device") or "cpu")
        except Exception as error:
            self.say(_failure({"type": "error"}, error, "fatal"))
            return
        self.say(
            {
                "type": "ready",
                "protocol": PROTOCOL,
                "model": str(getattr(self.model, "name", "")),
                "revision": str(getattr(self.model, "revision", "")),
                "weights_sha256": str(getattr(self.model, "weights_sha256", "")),
                "versions": _versions(),
                "unread": sorted(set(dict.keys(config)) - config.read),
                "max_batch": int(getattr(self.model, "max_batch", 1)),
                "mode": str(getattr(self.model, "mode", "")),
            }
        )

    def predict(self, message):
        number, items = message.get("id"), message.get("items") or []
        ready = []
        for item in items:
            try:
                if number in self.cancelled:
                    raise _BadInput("cancelled")
                ready.append((item, self.open(item)))
            except Exception as error:
                self.say(_failure({"type": "result", "id": number, "sid": item.get("sid")}, error, "input"))
        began = time.time()
        if ready:
            try:
                answers = self.ask(ready)
            except Exception as error:
                kind = "stop" if isinstance(error, StopRun) else "oom" if _out_of_memory(error) else "model"
                for item, _ in ready:
                    self.say(_failure({"type": "result", "id": number, "sid": item.get("sid")}, error, kind))
            else:
                spent = 1000.0 * (time.time() - began) / len(ready)
                for (item, image), answer in zip(ready, answers):
                    self.say(_result(number, item, image, answer, spent))
        self.cancelled.discard(number)
        self.say({"type": "done", "id": number})

    def ask(self, ready):
        if self.model is None:
            raise RuntimeError("predict before init")
        # What the model was made for: the cleaned expression, or the words as the annotator wrote them.
        words = "raw_expression" if getattr(self.model, "text", "") == "raw" else "expression"
        texts = [item.get(words) or item["expression"] for item, _ in ready]
        tags = [[item.get("tags") or [] for item, _ in ready]] if getattr(self.model, "tags", False) else []
        answers = self.model.segment([image for _, image in ready], texts, *tags)
        if len(answers) != len(ready):
            raise ValueError("segment returned %d answers for %d expressions" % (len(answers), len(ready)))
        return answers

    def open(self, item):
        """The picture of an item; the last one is kept, since several expressions are about it."""
        key = item.get("image") or item.get("image_b64")
        if self.picture[0] == key and key is not None:
            return self.picture[1]
        if item.get("image"):
            if not os.path.exists(item["image"]):
                raise _BadInput("the image %s does not exist" % item["image"])
            if not os.path.isfile(item["image"]):
                raise _BadInput("%s is not a regular file" % item["image"])
            opened = Image.open(item["image"], formats=FORMATS)
        else:
            opened = Image.open(io.BytesIO(base64.b64decode(item.get("image_b64") or "")), formats=FORMATS)
        image = to_rgb(opened)
        if [image.height, image.width] != list(item["size"]):
            raise _BadInput("%s is %d x %d px, not %r" % (item.get("image"), image.height, image.width, item["size"]))
        self.picture = (key, image)
        return image


def _result(number, item, image, answer, spent):
    if not isinstance(answer, Answer):
        answer = Answer(answer)
    out = {"type": "result", "id": number, "sid": item.get("sid"), "status": "ok", "ms": spent}
    try:
        out["mask"] = _mask(answer.mask, image)
        out["score"] = None if answer.score is None else float(answer.score)
        out["no_target"] = None if answer.no_target is None else bool(answer.no_target)
        out["instances"] = [{"mask": _mask(m, image), "score": float(s)} for m, s in answer.instances]
        out["note"], out["raw"] = str(answer.note), str(answer.raw)
        json.dumps(out, allow_nan=False)
    except Exception as error:
        return _failure({"type": "result", "id": number, "sid": item.get("sid")}, error, "model")
    return out


def _mask(mask, image):
    """Packed bits, compressed: 0.4 kB for a picture of 640 x 480."""
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu().numpy()
    if mask is None:
        raise ValueError("a mask is None; where nothing is found return np.zeros((height, width), bool)")
    pixels = np.asarray(mask)
    if pixels.dtype != np.bool_:
        raise ValueError("a mask must be bool, not %s; threshold it, e.g. > 0.5" % pixels.dtype)
    if pixels.shape != (image.height, image.width):
        raise ValueError("a mask has the shape %r, its image is %r" % (pixels.shape, (image.height, image.width)))
    data = base64.b64encode(zlib.compress(np.packbits(pixels).tobytes(), 1)).decode("ascii")
    return {"enc": "bits+zlib", "size": list(pixels.shape), "data": data}


def _failure(out, error, kind):
    out["status"] = "error"
    out["kind"] = kind
    # While the model is loaded, a ValueError is the user's fault: an option or a file.
    told = isinstance(error, _BadInput) or (kind == "fatal" and type(error) is ValueError)
    out["message"] = str(error) if told else "%s: %s%s" % (type(error).__name__, error, _place(error))
    out["traceback"] = "".join(traceback.format_exception(type(error), error, error.__traceback__))[-4000:]
    return out


def _place(error):
    """The last line of the worker's own script on the way to an error."""
    own = os.path.abspath(sys.argv[0])
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if _file_of(frame) == own]
    return " (%s, line %d)" % (os.path.basename(own), lines[-1]) if lines else ""


def _file_of(frame):
    return os.path.abspath(frame.f_code.co_filename)


def _out_of_memory(error):
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _seed(number):
    random.seed(number)
    np.random.seed(number % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def _settle(seed):
    """Repeatable random numbers and kernels, as far as the libraries that are there allow it."""
    _seed(seed)
    try:
        import torch
    except ImportError:
        return
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)
    # Versions before 1.11 know no warning: an operation without a repeatable kernel would be an error.
    with contextlib.suppress(AttributeError, TypeError):
        torch.use_deterministic_algorithms(True, warn_only=True)


def _versions():
    found = {"python": platform.python_version()}
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:
        # Python 3.7 has it in a package of its own, which need not be there.
        return found
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
