"""A process that prepares images, for adapters whose `prepare` holds Python's lock, which delays the model.

The process is forked, like those of PyTorch's DataLoader: it inherits the adapter, so no weights are copied. Arrays,
tensors and images come back in memory that both processes share.
"""

from __future__ import annotations

import contextlib
import gc
import io
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refbench.errors import DatasetError, text_of
from refbench.plugins.loading import load_attribute
from refbench.records import Question
from refbench.storage.children import end_with_parent, how_it_ended

# Address space; memory is used only where something is written. What does not fit is sent through the pipe.
BLOCK_BYTES = 2**27
# From <linux/mman.h>; Python has no name for it.
MAP_NORESERVE = 0x4000
ALIGNMENT = 64
JOIN_SECONDS = 5.0
ARRAY, TENSOR, IMAGE = "array", "tensor", "image"

Decode = Callable[[Question], Image.Image | DatasetError]
Prepare = Callable[[Image.Image, Sequence[str]], Any]


class ProcessDied(Exception):
    """The process ended without an answer; the message says how."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What `prepare` returned for an image. If it failed, `error` says why; if the image cannot be read, `unreadable`
    is True.
    """

    prepared: Any = None
    error: str = ""
    unreadable: bool = False
    decode_seconds: float = 0.0
    prepare_seconds: float = 0.0


def can_fork() -> bool:
    """Whether such processes can be started: on Linux, unless this process may not have children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


class PreparingProcess:
    """One process, which prepares one image at a time. Only one thread may call it at a time.

    Args:
        decode: reads the image of a question.
        prepare: the method of the adapter.
        device: device of the model; tensors for CUDA are put into pinned memory.

    Raises:
        OSError: the system refuses another process, or its memory.
    """

    def __init__(self, decode: Decode, prepare: Prepare, device: str) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._block = mmap.mmap(-1, BLOCK_BYTES, flags=flags)
        self._device = device
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(self._pipe, theirs, self._block, decode, prepare, os.getpid()),
            name="prepare",
            daemon=True,
        )
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads, because the child copies their locks. It takes none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def __call__(self, part: Sequence[Question]) -> Reply:
        """Prepare the image of a part.

        Raises:
            ProcessDied: the process crashed, or was killed.
        """
        try:
            self._pipe.send(part)
            content = self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._process.join(JOIN_SECONDS)
            raise ProcessDied(how_it_ended(self._process.exitcode)) from None
        try:
            reply: Reply = _Unpickler(content, self._block, self._device).load()
        except Exception as error:  # noqa: BLE001 (objects of others, and memory for CUDA, may refuse in any way)
            return Reply(error=f"what it returns cannot be read from another process: {_told(error)}")
        return reply

    def close(self) -> None:
        """End the process. A thread that waits for it gets ProcessDied."""
        self._process.kill()
        self._process.join()


def _serve(
    other_end: Connection, pipe: Connection, block: mmap.mmap, decode: Decode, prepare: Prepare, parent: int
) -> None:
    """Main loop of the process; it ends with its parent, which also decides what Ctrl-C means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` lets a command ignore SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    end_with_parent(parent)
    # Otherwise it would keep its own pipe open, and not notice that nobody needs it any more.
    other_end.close()
    # Collecting what was inherited would write to it, which copies its memory.
    gc.freeze()
    # Its threads did not survive the fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:
        load_attribute("refbench.adapters.torch_settings:begin_preparing_process")()
    with contextlib.suppress(EOFError, OSError):
        while True:
            part = pipe.recv()
            pipe.send_bytes(_pickled(_reply(part, decode, prepare), block))


def _reply(part: Sequence[Question], decode: Decode, prepare: Prepare) -> Reply:
    began = time.perf_counter()
    picture = decode(part[0])
    decoded = time.perf_counter()
    if isinstance(picture, DatasetError):
        return Reply(unreadable=True)
    try:
        prepared = prepare(picture, [s.expression for s in part])
    except BaseException as error:  # noqa: BLE001 (the code of others; the parent tries again)
        return Reply(error=_told(error))
    return Reply(prepared, "", False, decoded - began, time.perf_counter() - decoded)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"


def _pickled(reply: Reply, block: mmap.mmap) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file, block).dump(reply)
    except Exception as error:  # noqa: BLE001 (objects of others may refuse in any way)
        return pickle.dumps(Reply(error=f"what it returns cannot be sent to another process: {_told(error)}"))
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Writes arrays, tensors and images to a block of memory, and everything else to a file."""

    def __init__(self, file: io.BytesIO, block: mmap.mmap) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._block = np.frombuffer(block, np.uint8)
        self._end = 0
        # By id; the values are kept, so that no id is used twice.
        self._written: dict[int, tuple[Any, Any]] = {}
        self._memory_of_tensor: Callable[[Any], Any] = lambda _: None
        if "torch" in sys.modules:
            self._memory_of_tensor = load_attribute("refbench.adapters.torch_settings:memory_of")

    def persistent_id(self, value: Any) -> Any:
        if id(value) in self._written:
            return self._written[id(value)][1]
        if type(value) is np.ndarray:
            # Other arrays keep their order in memory only if they are pickled as usual.
            if value.dtype.hasobject or not value.flags.c_contiguous or not value.nbytes:
                return None
            return self._placed(value, ARRAY, value.reshape(-1).view(np.uint8), value.shape, value.dtype)
        if type(value) is Image.Image and value.mode in ("RGB", "L"):
            pixels = np.frombuffer(value.tobytes(), np.uint8)
            return self._placed(value, IMAGE, pixels, value.size, (value.mode, value.info))
        memory = self._memory_of_tensor(value)
        return None if memory is None else self._placed(value, TENSOR, memory, tuple(value.shape), value.dtype)

    def _placed(self, value: Any, kind: str, memory: NDArray[np.uint8], shape: tuple[int, ...], more: Any) -> Any:
        place = -(-self._end // ALIGNMENT) * ALIGNMENT
        if not len(memory) or place + len(memory) > len(self._block):
            return None
        self._end = place + len(memory)
        self._block[place : self._end] = memory
        self._written[id(value)] = value, (kind, place, len(memory), shape, more)
        return self._written[id(value)][1]


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote; arrays, tensors and images are copied, so that the block can be used again."""

    def __init__(self, content: bytes, block: mmap.mmap, device: str) -> None:
        super().__init__(io.BytesIO(content))
        self._block = np.frombuffer(block, np.uint8)
        self._device = device
        self._read: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        kind, place, size, shape, more = pid
        if place not in self._read:
            memory = self._block[place : place + size]
            if kind == ARRAY:
                value: Any = memory.copy().view(more).reshape(shape)
            elif kind == IMAGE:
                value = Image.frombytes(more[0], shape, memory)
                value.info = more[1]
            else:
                value = load_attribute("refbench.adapters.torch_settings:tensor_of")(memory, shape, more, self._device)
            self._read[place] = value
        return self._read[place]
