"""Torch settings of a run: deterministic kernels, memory, devices. Imported only if an adapter uses torch."""

from __future__ import annotations

import torch


def make_deterministic() -> None:
    """Switch to deterministic kernels, without TF32 and without benchmarking of kernels.

    On the CPU, use one thread, because sums depend on how they are split. An operation without a deterministic kernel
    gives a warning.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)


def seed(number: int) -> None:
    """Seed all random generators."""
    torch.manual_seed(number)


def moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor on a device; copied to CUDA through pinned memory, so that the copy overlaps with computation."""
    if device.type != "cuda":
        return tensor.to(device, dtype)
    return tensor.pin_memory().to(device, dtype, non_blocking=True)


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
    """The peak memory of torch on its device in bytes; 0 without a device."""
    if not device.startswith("cuda") or not _in_use():
        return 0
    return int(torch.cuda.max_memory_reserved(device))


def name_of(device: str) -> str:
    """The name of a CUDA device, "" for other devices."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_name(device))


def utilisation(device: str) -> float | None:
    """Recent utilisation of a CUDA device in percent; None if it cannot be measured."""
    if not device.startswith("cuda"):
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # noqa: BLE001 (a figure to look at: NVIDIA's library has errors of its own, and may be missing)
        return None
