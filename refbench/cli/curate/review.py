"""`refbench curate review`."""

from __future__ import annotations

import hashlib
import secrets
import socket
from pathlib import Path

import click

from refbench.cli.completion import curations
from refbench.cli.output import print_json, remark
from refbench.cli.paths import FilePath
from refbench.curation import decisions
from refbench.errors import RunError, Terminated
from refbench.plugins.loading import load_attribute

LOOPBACK = "127.0.0.1"
# How long the server waits for open requests when it is asked to end.
GRACE_SECONDS = 3


@click.command()
@click.argument("folder", metavar="DIR", shell_complete=curations, type=FilePath())
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the page; by default, the port depends on DIR and is always the same for the same DIR.",
)
@click.option("--all", "everything", is_flag=True, help="Also show the items that the recipe has already decided.")
@click.option(
    "--export",
    "export_to",
    metavar="FORM=FILE",
    help="Export the masks that need a review, for use in another program: cvat=FILE or label-studio=FILE.",
)
@click.option(
    "--import",
    "import_from",
    metavar="FORM=FILE",
    help="Import answers from another program: cvat=FILE or label-studio=FILE.",
)
@click.option("--reviewer", default="", help="Name of the reviewer whose answers are imported with --import.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def review(
    folder: Path,
    port: int,
    everything: bool,
    export_to: str | None,
    import_from: str | None,
    reviewer: str,
    as_json: bool,
) -> None:
    """Open a local page on which people review doubtful items.

    Prints the address of the page and serves it until Ctrl-C. Only this machine can open it. Every answer is saved
    before the next item appears, and `refbench curate decide` uses the answers. If the recipe requires several
    reviewers, items on which they disagree are shown again.

    \b
    Example:
      refbench curate review ~/.refbench/curation/refcoco-val
      refbench curate review DIR --export cvat=queue.xml
      refbench curate review DIR --import label-studio=export.json --reviewer anna
    """
    if export_to or import_from:
        _exchange(folder, export_to, import_from, reviewer, everything, as_json)
        return
    # Only this verb needs a web server: its packages are an extra.
    create_app = load_attribute("refbench.curation.review.app:create_app")
    serve = load_attribute("uvicorn:run")
    protocol = load_attribute("refbench.curation.review.connections:BoundedProtocol")
    port = _free_port(port or _own_port(folder), must=port != 0)
    token = secrets.token_urlsafe(24)
    hosts = (f"{LOOPBACK}:{port}", f"localhost:{port}")
    app = create_app(folder, token, hosts, everything=everything)
    address = f"http://{LOOPBACK}:{port}/{token}/"
    if as_json:
        print_json({"address": address})
    else:
        click.echo(address)
    remark("open this address; Ctrl-C ends it, answers are kept")
    ended: Terminated | None = None
    try:
        serve(
            app,
            host=LOOPBACK,
            port=port,
            http=protocol,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_SECONDS,
            access_log=False,
            lifespan="off",
            server_header=False,
        )
    except Terminated as stopped:
        ended = stopped
    except KeyboardInterrupt:
        pass
    # Also after a signal.
    decided = decisions.settle_ledger(folder)
    remark(f"{decided.reviewed} items are settled, {decided.waiting} wait; the ledger is {decided.ledger}")
    if ended is not None:
        raise ended


def _own_port(folder: Path) -> int:
    """A port that is always the same for a folder, because the browser stores unsent answers under the address of the
    page.
    """
    return 20_000 + int(hashlib.sha256(str(folder.resolve()).encode()).hexdigest(), 16) % 20_000


def _free_port(port: int, must: bool) -> int:
    for wanted in (port, 0):
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held.bind((LOOPBACK, wanted))
            except OSError as error:
                if must:
                    message = f"port {port} is taken ({error.strerror}); choose another one with --port"
                    raise RunError(message) from error
                continue
            return int(held.getsockname()[1])
    raise RunError("no port is free")


def _exchange(
    folder: Path, export_to: str | None, import_from: str | None, reviewer: str, everything: bool, as_json: bool
) -> None:
    done = {}
    for text, work in ((export_to, "write_queue"), (import_from, "read_answers")):
        if not text:
            continue
        form, equals, path = text.partition("=")
        if not equals or not path:
            raise click.BadParameter(f"{text!r} is not FORM=FILE")
        function = load_attribute(f"refbench.curation.annotation_tools:{work}")
        if work == "write_queue":
            done[form], others = function(folder, form, Path(path), everything=everything)
            remark(f"{path}: {done[form]} masks; {others} expressions wait too, on the review page")
        else:
            done[form] = function(folder, form, Path(path), reviewer=reviewer)
            remark(f"{path}: {done[form]} new answers")
    if as_json:
        print_json({"items": done})
