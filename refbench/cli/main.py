"""`refbench`: finds the verb in a table and imports only that, so that `refbench --help` starts at once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import click

from refbench._version import __version__
from refbench.cli.lazy import LazyGroup
from refbench.errors import RefbenchError, TooManyFailures

DONE, FAILED, USAGE, BAD_INPUT, TOO_MANY_FAILURES, INTERRUPTED = 0, 1, 2, 3, 4, 130

# Commands are imported only when called: verb -> (where its command is, its help in one line).
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("refbench.cli.demo:demo", "Run everything once, without a download: build, run, score, rank."),
    "list": ("refbench.cli.list:list_", "List datasets, adapters, protocols, checks or refiners."),
    "build": ("refbench.cli.build:build", "Build a dataset from its original files or from the hub."),
    "verify": ("refbench.cli.verify:verify", "Compare a built dataset with published figures; exit 1 if it differs."),
    "overlap": ("refbench.cli.overlap:overlap", "Count the images and objects that two splits share."),
    "export": ("refbench.cli.export:export", "Write a split for other programs: hf, coco, jsonl, croissant."),
    "run": ("refbench.cli.run:run", "Run an adapter over a split; the same command resumes it."),
    "score": ("refbench.cli.score:score", "Score a run folder or a predictions file."),
    "diagnose": ("refbench.cli.diagnose:diagnose", "Show where a run loses its points: kinds of errors, slices."),
    "compare": ("refbench.cli.compare:compare", "Compare two runs: paired differences, slices, changed samples."),
    "gate": ("refbench.cli.gate:gate", "Exit 1 if a run is significantly worse than a baseline, beyond a margin."),
    "check-adapter": ("refbench.cli.check_adapter:check_adapter", "Test an adapter against the contract."),
    "new-adapter": ("refbench.cli.new_adapter:new_adapter", "Write a first version of an adapter or a worker."),
    "env": ("refbench.cli.env:env", "Build, list or remove environments for workers."),
    "weights": ("refbench.cli.weights:weights", "Add or list weights of networks that curation uses."),
    "curate": ("refbench.cli.curate:curate", "Turn a coarse split into a cleaned one, with a ledger."),
    "report": ("refbench.cli.report:report", "Write report.html of a run: metrics and overlays."),
    "leaderboard": ("refbench.cli.leaderboard:leaderboard", "Build the leaderboard tables."),
}


@click.command(cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="refbench")
def refbench() -> None:
    """Build datasets, run models and rank them in referring image segmentation.

    \b
    Example:
      refbench build refcoco --annotations refer/data --images coco/train2014
      refbench run tiny refcoco/val
      refbench score ~/.refbench/runs/tiny/refcoco-val

    Exit codes: 0 done, 1 a gate or verification that fails, 2 usage, 3 bad input, 4 too many failed samples.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script; exits with one of the codes above."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = refbench.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was finished is on disk", err=True)
        return INTERRUPTED
    except TooManyFailures as error:
        click.echo(f"error: {error}", err=True)
        return TOO_MANY_FAILURES
    except RefbenchError as error:
        click.echo(f"error: {error}", err=True)
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
        traceback.print_exc()
        click.echo("this is a bug in refbench: please report it with the lines above", err=True)
        return 70


if __name__ == "__main__":
    main()
