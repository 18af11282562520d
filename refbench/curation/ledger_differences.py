"""Compares two ledgers of one source, item by item, for example of two recipes, or of a recipe and a published
split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from refbench.curation.agreement import boundary_iou
from refbench.curation.folder import load_items
from refbench.curation.ledger import ADDED, GONE, MASK, WITH_MASK, read_ledger
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.storage.manifest import split_fingerprint


@dataclass(frozen=True, slots=True)
class MaskInBoth:
    """A mask in two ledgers, with the action in each ledger and the boundary IoU of the two results; the boundary IoU
    is NaN if the mask is not in a result. Items that an edit added are left out.
    """

    item_id: str
    image_id: str
    first: str
    second: str
    boundary_iou: float


@dataclass(frozen=True, slots=True)
class LedgerDifferences:
    """`masks_by_action` and `expressions_by_action` count items by the pair (first action, second action)."""

    source: str
    masks: tuple[MaskInBoth, ...]
    expressions_by_action: Mapping[tuple[str, str], int]

    @property
    def masks_by_action(self) -> Mapping[tuple[str, str], int]:
        return Counter((m.first, m.second) for m in self.masks)

    @property
    def mean_boundary_iou(self) -> float:
        """Mean boundary IoU of the two results, between 0 and 1.

        It includes only masks that both results contain and at least one ledger changes; it is NaN if there are no such
        masks.
        """
        changed = [
            m.boundary_iou for m in self.masks if {m.first, m.second} & {*WITH_MASK} and not np.isnan(m.boundary_iou)
        ]
        return float(np.mean(changed)) if changed else float("nan")


def compare_ledgers(first: Path, second: Path) -> LedgerDifferences:
    """Compare two ledgers of the same build of a split, item by item.

    Args:
        first, second: ledger files, or curation folders.

    Raises:
        DatasetError: one of the two is not a ledger, the ledgers have different sources, or this build of the source no
            longer exists.
    """
    one, two = read_ledger(first), read_ledger(second)
    if (one.address, one.fingerprint) != (two.address, two.fingerprint):
        raise DatasetError(
            f"{first} is a ledger of {one.address} ({one.fingerprint[:12]}...), but {second} is a ledger of "
            f"{two.address} ({two.fingerprint[:12]}...); compare two ledgers for the same build of one split"
        )
    if split_fingerprint(one.address) != one.fingerprint:
        raise DatasetError(
            f"{one.address} was built again after {first} was written; run `refbench curate decide` again, or "
            "build the earlier version"
        )
    # Items that edits added are in one ledger only.
    old, new = ({i: row for i, row in ledger.by_id().items() if row.action != ADDED} for ledger in (one, two))
    if old.keys() != new.keys():
        odd = sorted(old.keys() ^ new.keys())
        raise DatasetError(
            f"{len(odd)} items are in one of the ledgers {first} and {second} but not in the other, for example "
            f"{odd[0]}; do not apply either ledger, and run `refbench curate decide` again"
        )
    source = {t.mask_id: t.mask for image in load_items(one.address) for t in image.masks}
    both = [i for i, row in old.items() if row.item == MASK and not {row.action, new[i].action} & {*GONE}]

    def result(row_mask: Mask | None, item_id: str) -> Mask:
        return row_mask if row_mask is not None else source[item_id]

    values = boundary_iou([result(old[i].mask, i) for i in both], [result(new[i].mask, i) for i in both]).tolist()
    by_id = dict(zip(both, values, strict=True))
    masks = tuple(
        MaskInBoth(i, row.image_id, row.action, new[i].action, by_id.get(i, float("nan")))
        for i, row in old.items()
        if row.item == MASK
    )
    expressions = Counter((row.action, new[i].action) for i, row in old.items() if row.item != MASK)
    return LedgerDifferences(one.address, masks, expressions)


def differences_table(found: LedgerDifferences) -> pd.DataFrame:
    """One row per mask: item_id, image_id, first, second, boundary_iou."""
    columns = ["item_id", "image_id", "first", "second", "boundary_iou"]
    return pd.DataFrame([[getattr(m, c) for c in columns] for m in found.masks], columns=columns)
