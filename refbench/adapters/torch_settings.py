"""What a run asks of torch: repeatable kernels, its memory, its devices. Imported only once an adapter uses torch."""

from __future__ import annotations

import torch


def make_deterministic() -> None:
    """Repeatable kernels, no TF32, no search for the fastest kernel; on the CPU one thread, since sums depend on how
    they are divided. An operation without a repeatable kernel warns."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)


def seed(number: int) -> None:
    """Begin all random numbers again."""
    torch.manual_seed(number)


def moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor on a device; to CUDA by way of pinned memory, so that the copy runs beside what is computed."""
    if device.type != "cuda":
        return tensor.to(device, dtype)
    return tensor.pin_memory().to(device, dtype, non_blocking=True)


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.synchronize(device)


def empty_cache() -> None:
    """Return memory that torch caches to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_use() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def reset_peak_memory(device: str) -> None:
    """Begin a new measurement of the peak."""
    if device.startswith("cuda") and _in_use():
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """Bytes that torch held at most on its device, 0 without one."""
    if not device.startswith("cuda") or not _in_use():
        return 0
    return int(torch.cuda.max_memory_reserved(device))


def name_of(device: str) -> str:
    """The name of a CUDA device, "" for others."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_name(device))


def utilisation(device: str) -> float | None:
    """How busy a CUDA device was in the last moments, in percent; None where it cannot be measured."""
    if not device.startswith("cuda"):
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # noqa: BLE001 (a figure to look at: NVIDIA's library has errors of its own, and may be missing)
        return None
