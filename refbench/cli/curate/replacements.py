"""`refbench curate replacements`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from refbench.cli.completion import curations
from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import annotation_sets
from refbench.curation.edits import EDITS_FILE
from refbench.storage.files import atomic_file


@click.command()
@click.argument("folder", metavar="DIR", shell_complete=curations, type=FilePath())
@click.argument("dataset", metavar="DATASET")
@click.option("--least-iou", type=float, default=0.8, show_default=True, help="Minimum IoU of a mask and its match.")
@click.option(
    "--out", type=FilePath(), default="replacements.jsonl", show_default=True, help="The file of edits to write."
)
@click.option("--replace", is_flag=True, help="Overwrite an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replacements(folder: Path, dataset: str, least_iou: float, out: Path, replace: bool, as_json: bool) -> None:
    """Propose edits that replace masks by those of another annotation set.

    DATASET is a built dataset with the same images, for example lvis for refcoco. COCO-ReM uses the masks of LVIS in
    this way. Each mask of the split is matched to at most one object of DATASET on the same image, by IoU. Read the
    edits, remove those that you do not want, then pass the file to `refbench curate edit`.

    \b
    Example:
      refbench curate replacements ~/.refbench/curation/refcoco-val lvis --out from-lvis.jsonl
      refbench curate edit ~/.refbench/curation/refcoco-val from-lvis.jsonl --reviewer anna
    """
    if out.exists() and not replace:
        raise click.UsageError(f"{out} already exists; pass --replace to overwrite it, or another --out")
    if out.resolve() == (folder / EDITS_FILE).resolve():
        raise click.UsageError(f"{out} holds the edits of the curation; choose another file with --out")
    proposed, table = annotation_sets.replacements(folder, dataset, least_iou)
    with atomic_file(out) as temporary:
        temporary.write_bytes(b"".join(msgspec.json.encode(edit) + b"\n" for edit in proposed))
    matched = int((table["by"] != "").sum())
    if as_json:
        print_json({"edits": str(out), "masks": len(table), "matched": matched, "replaced": len(proposed)})
        return
    rows = [["matched", str(matched)], ["same mask", str(matched - len(proposed))]]
    rows += [["without a match", str(len(table) - matched)], ["edits", str(len(proposed))]]
    print_table("", ["masks", "count"], rows)
    remark(f"{out} is written; apply it with: refbench curate edit {folder} {out}")
