"""Everything that refbench raises on purpose. A message gives the value, the expectation and the cure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


class RefbenchError(Exception):
    """Base of all errors that a user can mend; the command line prints it without a traceback."""


class MaskError(RefbenchError):
    """A run-length code, polygon or array is not a mask."""


class DatasetError(RefbenchError):
    """Annotation files or a built dataset are missing, broken or not what was asked for."""


class PredictionError(RefbenchError):
    """A predictions file cannot be read or does not fit the dataset."""


class AdapterError(RefbenchError):
    """An adapter cannot be loaded, or breaks its contract for a whole run."""


class RunStopped(AdapterError):
    """No further prediction is possible (e.g. a refused key, a service that is down). The run stops; the remaining
    samples do not count as failed, so the same command resumes it later.

    `usage` is the adapter's usage since the last finished shard.
    """

    usage: Mapping[str, float] = MappingProxyType({})


class RunError(RefbenchError):
    """A run folder cannot be used, or writing to it failed."""


class TooManyFailures(RefbenchError):
    """More samples failed than the user allowed; `result` is the result of the finished run."""

    result: object = None


def summarise_problems(problems: Sequence[str], shown: int = 20) -> str:
    """One line per problem for the first `shown` problems, and how many more there are."""
    lines = [f"  - {p}" for p in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  - and {len(problems) - shown} more")
    return "\n".join(lines)
