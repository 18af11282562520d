"""`refbench site`."""

from __future__ import annotations

from pathlib import Path

import click

from refbench.cli.output import ConsoleProgress, print_json, remark
from refbench.cli.paths import FilePath
from refbench.reports.site.build import IMAGES, OWN, build_site
from refbench.storage.files import home


@click.group()
def site() -> None:
    """Build web pages of the leaderboard, your runs and their samples.

    \b
    Example:
      refbench site build --out site
    """


@site.command()
@click.option(
    "--runs",
    "folders",
    multiple=True,
    type=FilePath(exists=True, file_okay=False),
    help="Folder with scored runs; repeatable.  [default: $REFBENCH_HOME/runs]",
)
@click.option(
    "--predictions",
    multiple=True,
    metavar="DATASET/SPLIT=FILE",
    help="Predictions file or folder, with its split; repeatable.",
)
@click.option(
    "--perfect",
    multiple=True,
    metavar="A=B",
    help="Split A and its cleaned version B: the page of A shows the score that the masks of B reach; repeatable.",
)
@click.option("--out", type=FilePath(), required=True, help="Folder of the site; a site that is there is replaced.")
@click.option(
    "--images",
    type=click.Choice(IMAGES),
    default=OWN,
    show_default=True,
    help="own: copy only images that refbench made itself; copy: copy all; link: refer to the files on this machine; "
    "none: no images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(
    folders: tuple[Path, ...],
    predictions: tuple[str, ...],
    perfect: tuple[str, ...],
    out: Path,
    images: str,
    as_json: bool,
) -> None:
    """Build the site into a folder.

    The site has a leaderboard of published and measured results, a page for each run on which every sample can be
    opened, a page that compares two runs, and pages of datasets and systems. It works without a server and without a
    network: open index.html. It can be published as it is, for example with GitHub Pages.

    The figures of each run are computed again from its predictions, as by `refbench leaderboard verify`. Photographs of
    most datasets have individual licences, so `--images copy` is only for sites that you do not publish.

    \b
    Example:
      refbench site build --out site
      refbench site build --runs ~/.refbench/runs --images link --out site
      refbench site build --predictions refcoco/val=predictions.jsonl --out site
      refbench site build --perfect refcoco/val=refcoco-m/val --out site
    """
    pairs = []
    for text in predictions:
        address, sign, path = text.partition("=")
        if not sign or "/" not in address or not Path(path).exists():
            raise click.BadParameter(
                f"{text!r}: write DATASET/SPLIT=FILE, where FILE exists", param_hint="--predictions"
            )
        pairs.append((Path(path), address))
    versions = dict(text.partition("=")[::2] for text in perfect)
    if not all("/" in a and "/" in b for a, b in versions.items()):
        raise click.BadParameter("write A=B, both as DATASET/SPLIT", param_hint="--perfect")
    default = home() / "runs"
    places = folders or ((default,) if default.is_dir() else ())
    with ConsoleProgress() as progress:
        built = build_site(places, out, predictions=pairs, perfect=versions, images=images, progress=progress)
    for source, reason in built.left_out.items():
        remark(f"{source} is left out: {reason}")
    if as_json:
        print_json(
            {
                "index": str(built.index),
                "runs": built.runs,
                "samples": built.samples,
                "published": built.published,
                "left_out": built.left_out,
            }
        )
        return
    remark(f"{built.runs} runs with {built.samples:,} samples, {built.published} published results; open:")
    click.echo(built.index.as_uri())
