"""`refbench overlap`."""

from __future__ import annotations

import click

from refbench.cli.completion import splits
from refbench.cli.output import print_json, print_table, remark
from refbench.datasets.overlaps import overlap as compare


@click.command()
@click.argument("a", shell_complete=splits)
@click.argument("b", shell_complete=splits)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with the ids of the shared images.")
def overlap(a: str, b: str, as_json: bool) -> None:
    """Count the images and objects that two splits share.

    A and B are splits or whole datasets. B can also be a list of training images: a text file with one image id or COCO
    file name per line, or a COCO JSON file. The shared images are then those that the model may have been trained on.

    \b
    Example:
      refbench overlap refcoco/val refcocog-umd/val
      refbench overlap refcoco/testA my_training_images.txt --json
    """
    found = compare(a, b)
    if as_json:
        print_json(found.to_json())
        return
    rows = [
        ["images", str(found.images), _share(found.images, found.images_a), _share(found.images, found.images_b)],
        ["objects", "unknown" if found.objects is None else str(found.objects), "", ""],
        ["expressions", str(found.expressions), _share(found.expressions, found.expressions_a), ""],
    ]
    print_table("", ["shared", "count", f"of {a}", f"of {b}"], rows)
    remark(f"objects by {found.objects_by}; expressions are those of {a} on shared images")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
