"""The ledger: written, read back, applied; of another source, edited, damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation.miniature_split import HEIGHT, WIDTH, image, objects_of, sample, square

from refbench.curation.ledger import Ledger, read_ledger, rows_of, write_ledger
from refbench.curation.ledger_application import apply_ledger
from refbench.errors import DatasetError
from refbench.records import Decision, Sample

NEW = square(12, 12, 18)


def split() -> list[Sample]:
    """Three masks, one named twice, and an expression without a target."""
    return [
        sample("a", 0, "left one", square(10, 10, 20), polygons=((10.0, 10.0, 30.0, 10.0, 30.0, 30.0),)),
        sample("a", 1, "the <b>left</b> one", square(10, 10, 20)),
        sample("b", 0, "right one", square(10, 50, 20)),
        sample("c", 0, "low one", square(38, 30, 20)),
        sample("none", 0, "no such thing", None),
    ]


def ledger(samples: list[Sample], **changes: Decision) -> Ledger:
    """All kept, but for the items that `changes` names by their last part."""
    items = image(samples)
    masks = {t.mask_id: Decision(t.mask_id, "keep", "proposals", "fine") for t in items.masks}
    expressions = {s.sample_id: Decision(s.sample_id, "keep", "language", "no rule applies") for s in samples}
    for name, decision in changes.items():
        key = f"toy/val/{name}" if f"toy/val/{name}" in masks else f"toy/val/{name.replace('_', '/')}"
        (masks if key in masks else expressions)[key] = decision
    return Ledger("toy/val", "f" * 64, "test", "r" * 64, tuple(rows_of([items], masks, expressions, {"x": "w" * 64})))


def changed() -> Ledger:
    return ledger(
        split(),
        a=Decision("toy/val/a", "change", "proposals", "agreed", NEW, "x", {"agreement": 0.5}),
        b=Decision("toy/val/b", "drop", "review", "drop", reviewer="anna", time="2026-01-01T00:00:00+00:00"),
        c_0=Decision("toy/val/c/0", "drop", "language", "insult: word"),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    write_ledger(path, changed())
    found = read_ledger(path)
    assert found == changed()
    assert not found.edited
    assert read_ledger(tmp_path) == found
    again = tmp_path / "again.parquet"
    write_ledger(again, found)
    assert again.read_bytes() == path.read_bytes()
    rows = {r.item_id.removeprefix("toy/val/"): (r.action, r.stage) for r in found.rows}
    assert rows == {
        "a": ("changed", "proposals"), "a/0": ("kept", "language"), "a/1": ("kept", "language"),
        "b": ("dropped", "review"), "b/0": ("dropped", "mask"), "c": ("kept", "proposals"),
        "c/0": ("dropped", "language"), "none/0": ("kept", "language"),
    }  # fmt: skip
    assert found.by_id()["toy/val/a"].weights_sha256 == "w" * 64


def test_it_makes_the_next_version(home: Path) -> None:
    samples = split()
    kept, objects = apply_ledger(samples, objects_of(samples), changed(), "new", "ledger")
    assert [s.sample_id for s in kept] == ["new/val/a/0", "new/val/a/1", "new/val/none/0"]
    assert [s.target for s in kept[:2]] == [NEW, NEW]
    assert kept[0].box_xywh == NEW.box_xywh
    assert kept[0].polygons == ()
    assert kept[0].tags == ("curated",)
    assert [s.expression for s in kept] == [samples[k].expression for k in (0, 1, 4)]
    # What nobody asks for any more stays annotated, as a distractor.
    assert {o.ann_id: o.mask for o in objects} == {"a": NEW, "b": samples[2].target, "c": samples[3].target}


def test_an_image_that_is_left_empty_is_gone(home: Path) -> None:
    samples = [*split(), sample("z", 0, "elsewhere", square(5, 5, 9), image_id="2")]
    items_two = samples[5:]
    whole = ledger(split(), none_0=Decision("toy/val/none/0", "drop", "language", "x"))
    masks = {"toy/val/z": Decision("toy/val/z", "drop", "audit", "x")}
    words = {"toy/val/z/0": Decision("toy/val/z/0", "keep", "language", "x")}
    rows = (*whole.rows, *rows_of([image(items_two)], masks, words, {}))
    both = Ledger("toy/val", "f" * 64, "test", "r" * 64, rows)
    kept, objects = apply_ledger(samples, objects_of(samples), both, "new", "ledger")
    assert {s.image_id for s in kept} == {"1"}
    assert {o.image_id for o in objects} == {"1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:-1], "none/0 is not in the source"),
        (lambda s: [*s, sample("d", 0, "new", square(1, 1, 9))], "toy/val/d of the source is not in the ledger"),
        (lambda s: [sample("a", 0, "other words", s[0].target), *s[1:]], "toy/val/a/0 has changed since"),
        (lambda s: [*s[:3], sample("c", 0, "low one", square(37, 30, 20)), s[4]], "toy/val/c has changed since"),
    ],
)
def test_a_ledger_of_another_source(home: Path, change: Any, message: str) -> None:
    other = change(split())
    with pytest.raises(DatasetError, match=message):
        apply_ledger(other, objects_of(other), changed(), "new", "ledger")


def edited(path: Path, column: str, row: int, value: Any, keep_metadata: bool = True) -> None:
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    new = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    pq.write_table(new if keep_metadata else new.replace_schema_metadata({}), path)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("action", 0, "burnt", "the action for a mask must be one of"),
        ("action", 3, "changed", "the action for a expression must be one of"),
        ("item", 0, "picture", "an item must be a"),
        ("counts", 0, "", "but the row contains no mask"), ("counts", 0, "zzz", "invalid run-length code"),
        ("height", 0, -5, "height must be"), ("item_id", 1, "toy/val/a", "occurs twice"),
        ("reason", 0, None, "a text is missing"),
    ],
)  # fmt: skip
def test_rows_that_say_nothing_sensible(tmp_path: Path, column: str, row: int, value: Any, message: str) -> None:
    path = tmp_path / "ledger.parquet"
    write_ledger(path, changed())
    edited(path, column, row, value)
    with pytest.raises(DatasetError, match=message):
        read_ledger(path)


def test_a_row_of_the_wrong_kind(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "ledger.parquet"
    write_ledger(path, changed())
    edited(path, "item", 3, "mask")
    with pytest.raises(DatasetError, match="is a row about a mask, it is a expression"):
        apply_ledger(split(), objects_of(split()), read_ledger(path), "new", "ledger")


def test_an_edit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    write_ledger(path, changed())
    edited(path, "action", 0, "dropped")
    assert read_ledger(path).edited
    edited(path, "action", 0, "dropped", keep_metadata=False)
    with pytest.raises(DatasetError, match="does not name its source split"):
        read_ledger(path)
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        read_ledger(path)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"refbench": "{}"}), path)
    with pytest.raises(DatasetError, match="does not name its source split"):
        read_ledger(path)


def test_a_mask_of_another_size_is_refused(home: Path) -> None:
    wrong = ledger(split(), a=Decision("toy/val/a", "change", "proposals", "x", square(1, 1, 5, HEIGHT, WIDTH + 1)))
    with pytest.raises(DatasetError, match="its new mask is"):
        apply_ledger(split(), objects_of(split()), wrong, "new", "ledger")
