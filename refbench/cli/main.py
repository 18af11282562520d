"""`refbench`: finds the command in a table and imports only this command, so `refbench --help` starts quickly."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence

import click

from refbench._version import __version__
from refbench.cli.lazy import LazyGroup
from refbench.errors import RefbenchError, Terminated, TooManyFailures, storable, text_of
from refbench.plugins.loading import load_attribute

DONE, FAILED, USAGE, BAD_INPUT, TOO_MANY_FAILURES, INTERRUPTED = 0, 1, 2, 3, 4, 130

# Commands are imported only when called: verb -> (where its command is, its help in one line).
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("refbench.cli.demo:demo", "Build, run, score and rank once, without downloads."),
    "list": ("refbench.cli.list:list_", "List datasets, adapters, protocols, checks or refiners."),
    "build": ("refbench.cli.build:build", "Build a dataset from its original files or from the Hugging Face hub."),
    "verify": ("refbench.cli.verify:verify", "Compare a built dataset with published counts."),
    "overlap": ("refbench.cli.overlap:overlap", "Count the images and objects that two splits share."),
    "export": (
        "refbench.cli.export:export",
        "Export a split or the results of a run for other programs: hf, coco, jsonl, croissant, hf-eval.",
    ),
    "run": ("refbench.cli.run:run", "Run an adapter on a split. The same command resumes the run."),
    "score": ("refbench.cli.score:score", "Score a run folder or a predictions file."),
    "diagnose": ("refbench.cli.diagnose:diagnose", "Show what kinds of errors a run makes, and on which samples."),
    "compare": ("refbench.cli.compare:compare", "Compare two runs: paired differences, slices, changed samples."),
    "gate": ("refbench.cli.gate:gate", "Exit with code 1 if a run is significantly worse than a baseline."),
    "check-adapter": ("refbench.cli.check_adapter:check_adapter", "Test whether an adapter works with refbench."),
    "new-adapter": ("refbench.cli.new_adapter:new_adapter", "Create the files of a new adapter or worker."),
    "env": ("refbench.cli.env:env", "Build, list or remove environments for workers."),
    "weights": ("refbench.cli.weights:weights", "Add or list weights of the networks that curation uses."),
    "curate": ("refbench.cli.curate:curate", "Make a cleaned version of a split, and record every decision."),
    "report": (
        "refbench.cli.report:report",
        "Write an HTML report for a run or a predictions file, with metrics and overlays.",
    ),
    "leaderboard": (
        "refbench.cli.leaderboard:leaderboard",
        "Show published results beside your own, build the leaderboard tables, and verify scored runs.",
    ),
    "ceiling": (
        "refbench.cli.ceiling:ceiling",
        "Show the score that the masks of B reach when the masks of A judge them.",
    ),
    "submit": ("refbench.cli.submit:submit", "Check a scored run, and write it as a submission to a leaderboard."),
    "doctor": ("refbench.cli.doctor:doctor", "Show what is installed and built here, and what is missing."),
    "site": ("refbench.cli.site:site", "Build web pages of the leaderboard, your runs and their samples."),
}

# Commands that load code from outside into their own process.
SUPERVISED = (["run"], ["check-adapter"], ["curate", "propose"])


@click.command(cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="refbench")
def refbench() -> None:
    """Build datasets, run models and rank them in referring image segmentation.

    \b
    Example:
      refbench build refcoco --annotations refer/data --images coco/train2014
      refbench run tiny refcoco/val
      refbench score ~/.refbench/runs/tiny/refcoco-val

    Exit codes: 0 success, 1 a gate or a verification failed or a process ended too early, 2 wrong usage, 3 invalid
    input, 4 too many failed samples, 130 and 143 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the console script; exits with one of the codes in the help text."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if _needs_supervision(given):
        sys.exit(load_attribute("refbench.cli.supervision:supervised")(lambda: _run(arguments)))
    sys.exit(_run(arguments))


def _needs_supervision(arguments: Sequence[str]) -> bool:
    """Whether a command line loads code from outside into its process, and this platform can supervise the process."""
    words = [a for a in arguments if not a.startswith("-")]
    wanted = any(words[: len(verb)] == verb for verb in SUPERVISED)
    return wanted and sys.platform == "linux" and threading.active_count() == 1


def _run(arguments: Sequence[str] | None) -> int:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup lets a command ignore SIGHUP, and so it stays.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _terminate)
    odd = next((a for a in (sys.argv[1:] if arguments is None else arguments) if storable(a) != a), None)
    if odd is not None:
        click.echo(f"error: the argument {odd!r} is not UTF-8; rename the file or folder", err=True)
        return USAGE
    try:
        code = refbench.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return USAGE
    except (click.Abort, KeyboardInterrupt) as stopped:
        # click raises Abort from the interruption.
        cause = stopped if isinstance(stopped, KeyboardInterrupt) else stopped.__cause__ or stopped.__context__
        if isinstance(cause, Terminated):
            click.echo(f"ended by {signal.Signals(cause.signal).name}; completed results are saved", err=True)
            return 128 + cause.signal
        click.echo("interrupted; completed results are saved", err=True)
        return INTERRUPTED
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):
            # So does click where the reader of our output went away (`| head`).
            return DONE
        click.echo(
            f"error: code outside of refbench called sys.exit({text_of(exit_)}); the command is not finished", err=True
        )
        return FAILED
    except TooManyFailures as error:
        click.echo(f"error: {_safe(error)}", err=True)
        return TOO_MANY_FAILURES
    except RefbenchError as error:
        click.echo(f"error: {_safe(error)}", err=True)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output went away (`| head`); that is no error of ours.
        sys.stderr.close()
        return DONE
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {name}{error.strerror or error}; check the path, its permissions and free space", err=True)
        return BAD_INPUT
    except Exception:  # noqa: BLE001 (the last resort of the program)
        click.echo(_safe(traceback.format_exc()), err=True)
        click.echo("this is a bug in refbench: please report it with the lines above", err=True)
        return 70


def _safe(text: object) -> str:
    """A message without secrets: those of the command line, of the environment, and in URLs."""
    words = [word.partition("=") for word in sys.argv[1:]]
    redact = load_attribute("refbench.storage.secrets:redacted")
    secrets = load_attribute("refbench.storage.secrets:secret_values")
    return str(redact(storable(text), secrets({name: value for name, _, value in words})))


def _terminate(number: int, frame: object) -> None:
    # Once: a second signal, perhaps to the whole group, must not disturb what is closed now.
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(number)


if __name__ == "__main__":
    main()
