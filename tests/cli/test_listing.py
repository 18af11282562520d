"""Listing and filtering a built split: without masks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from refbench import load_samples, sample_table
from refbench.cli.main import main
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.datasets.overlaps import overlap
from refbench.errors import DatasetError
from refbench.masks.mask import Mask
from refbench.plugins.loading import load
from refbench.records import Sample
from refbench.storage.progress import silent


@pytest.fixture
def whole(test_data: Path, home: Path) -> str:
    release = Sources(test_data / "whole-splits" / "refer")
    build_dataset("refcoco", load("builders", "refcoco"), release, silent)
    return "refcoco/val"


def test_no_mask_is_touched(whole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read: list[str] = []
    original = pq.ParquetFile.read

    def watched(self: pq.ParquetFile, columns: list[str] | None = None, **options: object) -> object:
        read.extend(columns or self.schema_arrow.names)
        return original(self, columns=columns, **options)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a mask was loaded")

    monkeypatch.setattr(pq.ParquetFile, "read", watched)
    monkeypatch.setattr(Mask, "__post_init__", forbidden)
    monkeypatch.setattr(Mask, "from_codes", forbidden)
    table = sample_table(whole)
    assert len(table) == 10834
    chosen = table[table.expression.str.contains("left") & (table.width > 600)]
    assert 0 < len(chosen) < len(table)
    assert overlap(whole, whole).images == 1500
    with pytest.raises(SystemExit) as ended:
        main(["list", "datasets", "--json"])
    assert ended.value.code == 0
    listed = json.loads(capsys.readouterr().out)["datasets"]
    assert next(d for d in listed if d["name"] == "refcoco")["splits"] == {"val": 10834}
    assert not {"target_counts", "polygons", "counts"} & set(read)


def test_the_chosen_rows_are_loaded_alone(whole: str) -> None:
    table = sample_table(whole)
    chosen = table[table.expression == "left"]
    samples = load_samples(whole, chosen.sample_id)
    assert [s.sample_id for s in samples] == list(chosen.sample_id)
    everything = {s.sample_id: s for s in load_samples(whole)}
    assert all(everything[s.sample_id] == s for s in samples)
    with pytest.raises(DatasetError, match="has no sample 'refcoco/val/x/y'"):
        load_samples(whole, ["refcoco/val/0/0", "refcoco/val/x/y"])
    assert load_samples(whole, []) == []


def test_records_are_like_those_of_the_constructor(whole: str) -> None:
    sample = load_samples(whole)[0]
    again = Sample(**{f.name: getattr(sample, f.name) for f in dataclasses.fields(Sample)})
    assert sample == again
    assert hash(sample) == hash(again)
    with pytest.raises(AttributeError):
        sample.expression = "other"  # type: ignore[misc]
