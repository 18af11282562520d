"""RefCOCO-M from its Parquet schema, whole and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refbench import load_samples
from refbench.datasets.builders import refcoco_m
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError
from refbench.storage.manifest import Manifest
from refbench.storage.progress import silent

FILE = "validation-00000-of-00001.parquet"


def build(folder: Path) -> Manifest:
    return build_dataset("refcoco-m", refcoco_m.build, Sources(folder), silent)


@pytest.fixture
def rows(test_data: Path) -> tuple[list[dict[str, Any]], pa.Schema]:
    table = pq.read_table(test_data / "photos" / "refcoco-m-schema" / "data" / FILE)
    return table.to_pylist(), table.schema


def test_the_published_schema(test_data: Path, home: Path) -> None:
    manifest = build(test_data / "photos" / "refcoco-m-schema")
    assert manifest.splits["val"].images == 6
    assert manifest.splits["val"].expressions == 47
    sample = load_samples("refcoco-m/val")[0]
    assert (sample.expression, sample.category, sample.ann_ids) == ("zebra at the bottom", "zebra", ("590410",))
    assert Path(sample.image_path).is_file()
    assert build(test_data / "photos" / "refcoco-m-schema").fingerprint == manifest.fingerprint


def set_mask(key: str, value: Any) -> Any:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[1]["samples"][0]["mask"][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_mask("counts", "zz"), r"row 1, samples\[0\]:.*invalid run-length code"),
        (set_mask("size", [5, 5]), r"row 1, samples\[0\]: "),
        (lambda rows: rows[1].update(file_name="../up.jpg"), "must be a file"),
        (
            lambda rows: rows[1].update(image={"bytes": b"text", "path": ""}),
            "row 1: the bytes of .* are not a readable",
        ),
        (lambda rows: rows[1].update(image=None), r"row 1: the image .* is missing"),
        (lambda rows: rows[1]["samples"].append(rows[1]["samples"][0]), r"row 1, samples\[\d+\]: the sample id"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, home: Path, rows: Any, change: Any, message: str) -> None:
    content, schema = rows
    change(content)
    pq.write_table(pa.Table.from_pylist(content, schema=schema), tmp_path / FILE)
    with pytest.raises(DatasetError, match=message):
        build(tmp_path)


def test_files_that_are_no_refcoco_m(tmp_path: Path, home: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \*.parquet"):
        build(tmp_path)
    (tmp_path / FILE).write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        build(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / FILE)
    with pytest.raises(DatasetError, match="lacks the columns"):
        build(tmp_path)
