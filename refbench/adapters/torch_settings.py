"""Torch settings of a run: deterministic kernels, precision, memory, streams. Imported only if an adapter uses
torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refbench.errors import AdapterError

# NVIDIA's library renews the figure a few times a second.
LOOK_SECONDS = 0.25
# Set in a process that prepares images.
_in_preparing_process = False
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_deterministic() -> None:
    """Switch to deterministic kernels, without TF32 and without benchmarking of kernels.

    On the CPU, use one thread, because the result of a sum depends on how it is split between threads. An operation
    without a deterministic kernel gives a warning.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)


def seed(number: int) -> None:
    """Seed all random generators."""
    torch.manual_seed(number)


class OneThreadEach:
    """Limits torch to one thread in every thread that calls it; for the threads of a pool."""

    def __init__(self) -> None:
        # The present thread keeps its own number, once it has asked for it.
        self._threads = torch.get_num_threads()

    def __call__(self) -> None:
        torch.set_num_threads(1)

    def restore(self) -> None:
        """Set the number again that threads of the caller start with, which `torch.set_num_threads` changes too."""
        torch.set_num_threads(self._threads)


def pinned(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor in pinned memory if the device is CUDA, so that copying it to the device is fast; intended for
    `prepare`. In a preparing process, which cannot use CUDA, the tensor is pinned when it arrives.
    """
    tensor = tensor.to(dtype)
    return tensor.pin_memory() if device.type == "cuda" and not _in_preparing_process else tensor


def better_in_processes(device: torch.device) -> bool:
    """Whether images are prepared faster in processes: on CUDA, because every start of a kernel needs Python's lock. A
    CPU computes without the lock, and threads are a little faster.
    """
    return device.type == "cuda"


def begin_preparing_process() -> None:
    """The start of a forked process that prepares images: torch's threads do not exist there, and CUDA cannot be
    used.
    """
    global _in_preparing_process
    _in_preparing_process = True
    torch.set_num_threads(1)


def memory_of(value: Any) -> NDArray[np.uint8] | None:
    """The memory of a tensor that consists of nothing but numbers on the CPU in the usual order; otherwise None."""
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
        return None
    plain = value.is_contiguous() and value.numel() and not (value.requires_grad or value.is_quantized)
    if not plain or value.is_complex():
        return None
    read: NDArray[np.uint8] = value.reshape(-1).view(torch.uint8).numpy()
    return read


def tensor_of(memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """A copy of such memory as a tensor, in pinned memory if the device is CUDA."""
    there = torch.from_numpy(memory).view(dtype).reshape(shape)
    return there.pin_memory() if device.startswith("cuda") else there.clone()


def moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor on a device; copied to CUDA through pinned memory, so that the copy overlaps with computation."""
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device, dtype)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, dtype, non_blocking=True)


def precision_of(name: str) -> torch.dtype:
    """The dtype of an option; raises AdapterError for an unknown name."""
    if name not in PRECISIONS:
        raise AdapterError(f"unknown precision {name!r}; choose from {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


@contextmanager
def computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inference, with automatic mixed precision unless the dtype is float32."""
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


class Beside:
    """A second stream of a CUDA device, in which one batch is finished while the next one is computed.

    On other devices, everything is done in turn.
    """

    def __init__(self, device: str) -> None:
        self.in_parallel = device.startswith("cuda") and torch.cuda.is_available()
        # Of high priority: its kernels, most of them small, must not wait behind those of the next batch.
        self._stream: Any = torch.cuda.Stream(device, priority=-1) if self.in_parallel else None  # type: ignore[no-untyped-call]
        self._device = device

    def mark(self) -> Any:
        """A mark after all work that has been queued on the device so far."""
        return torch.cuda.current_stream(self._device).record_event() if self.in_parallel else None

    @contextmanager
    def after(self, mark: Any) -> Iterator[None]:
        """Run the block in the second stream, after all work that was queued before the mark."""
        if mark is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(mark)
            yield

    def drain(self) -> None:
        """Wait until the second stream has done its work, so that the other stream can use its results and memory."""
        if self._stream is not None:
            self._stream.synchronize()

    def wait(self, mark: Any) -> None:
        """Block the calling thread until all work that was queued before the mark is done."""
        if mark is not None:
            mark.synchronize()


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.synchronize(device)


def empty_cache() -> None:
    """Free the memory that torch caches on the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_use() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def reset_peak_memory(device: str) -> None:
    """Reset the measurement of the peak memory."""
    if device.startswith("cuda") and _in_use():
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """The peak memory of torch on the CUDA device in bytes; 0 if no CUDA device is used."""
    if not device.startswith("cuda") or not _in_use():
        return 0
    return int(torch.cuda.max_memory_reserved(device))


def name_of(device: str) -> str:
    """The name of a CUDA device, "" for other devices."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_name(device))


class Utilisation:
    """Measures the utilisation of a CUDA device in a thread, because a measurement can take longer than a batch."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._seen: list[float] = []
        self._end = threading.Event()
        if device.startswith("cuda") and torch.cuda.is_available():
            threading.Thread(target=self._look, name="utilisation", daemon=True).start()

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            try:
                self._seen.append(float(torch.cuda.utilization(self._device)))
            except Exception:  # noqa: BLE001 (a figure to look at: NVIDIA's library has errors of its own)
                return

    def percent(self) -> float | None:
        """The mean utilisation in percent since the last call; None if there was no measurement."""
        seen, self._seen = self._seen, []
        return sum(seen) / len(seen) if seen else None

    def close(self) -> None:
        """End the thread."""
        self._end.set()
