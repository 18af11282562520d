"""All exceptions that refbench raises on purpose. A message states the value, what was expected and how to fix it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


class RefbenchError(Exception):
    """Base class of all errors that a user can fix; the command line prints it without a traceback."""


class MaskError(RefbenchError):
    """A run-length code, polygon or array is not a valid mask."""


class DatasetError(RefbenchError):
    """Annotation files or a built dataset are missing, invalid or not the expected ones."""


class PredictionError(RefbenchError):
    """A predictions file cannot be read or does not match the dataset."""


class AdapterError(RefbenchError):
    """An adapter cannot be loaded, or does not satisfy the interface during a whole run."""


class RunStopped(AdapterError):
    """No further prediction is possible, for example because a key is refused or a service is down.

    The run stops. The remaining samples do not count as failed, so the same command can resume the run later. `usage`
    is the usage of the adapter since the last completed shard.
    """

    usage: Mapping[str, float] = MappingProxyType({})


class RunError(RefbenchError):
    """A run folder is unusable, or writing to it failed."""


class TooManyFailures(RefbenchError):
    """More samples failed than the user allowed; `result` is the result of the complete run."""

    result: object = None


def summarise_problems(problems: Sequence[str], shown: int = 20) -> str:
    """One line for each of the first `shown` problems, and the number of further problems."""
    lines = [f"  - {p}" for p in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  - and {len(problems) - shown} more")
    return "\n".join(lines)
