"""All exceptions that refbench raises on purpose. A message states the value, what was expected and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

# Longer texts of exceptions are cut; some libraries put a whole file or tensor into them.
LONGEST_TEXT = 4000


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


class Terminated(KeyboardInterrupt):
    """The process received a signal that asks it to end, such as SIGTERM; `signal` is its number.

    It is raised in the main thread and, like Ctrl-C, is not an Exception, so that it passes through code that handles
    errors.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


def storable(text: object) -> str:
    """The text with `?` in place of lone surrogates, which UTF-8 cannot encode."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def text_of(error: BaseException) -> str:
    """The text of an exception from code of others: never raises, can be stored, and has a limited length."""
    try:
        return storable(error)[:LONGEST_TEXT]
    except Exception as second:  # noqa: BLE001 (an exception class may do anything)
        return f"(its text cannot be read: {type(second).__name__})"


@contextmanager
def no_exit(owner: str) -> Iterator[None]:
    """Code of others must not end the program: `sys.exit` and the like become an AdapterError.

    Args:
        owner: whose code runs, for the message.

    Raises:
        AdapterError: the code raised SystemExit or another exception that is not an Exception. KeyboardInterrupt is
            passed on, because it means that the user or the system wants to stop.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except SystemExit as exit_:
        raise AdapterError(f"{owner} called sys.exit({text_of(exit_)})") from exit_
    except BaseException as error:
        raise AdapterError(f"{owner} raised {type(error).__name__}: {text_of(error)}") from error


def summarise_problems(problems: Sequence[str], shown: int = 20) -> str:
    """One line for each of the first `shown` problems, and the number of further problems."""
    lines = [f"  - {p}" for p in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  - and {len(problems) - shown} more")
    return "\n".join(lines)
