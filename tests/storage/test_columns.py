"""Columns of Arrow against pyarrow's own conversions, and rows of a split that are read by row group."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refbench.errors import DatasetError
from refbench.storage.columns import TextColumn, all_different, as_texts, column_of, numbers_of, texts_column
from refbench.storage.manifest import split_path
from refbench.storage.samples import SplitFile, load_questions, load_samples

texts = st.lists(st.text(max_size=8), max_size=30)


@settings(deadline=None)
@given(texts, st.integers(0, 5), st.integers(1, 7))
def test_texts(given_texts: list[str], skipped: int, chunk: int) -> None:
    whole = texts_column(given_texts)
    assert whole.equals(pa.array(given_texts, pa.string()))
    parts = [whole.slice(k, chunk) for k in range(min(skipped, len(whole)), len(whole), chunk)]
    column = pa.chunked_array(parts, pa.string())
    kept = given_texts[skipped:]
    read = TextColumn(column)
    assert (list(read), len(read), [read[k] for k in range(len(kept))]) == (kept, len(kept), kept)
    numbers, count = read.numbered()
    order = sorted(set(kept))
    assert (numbers.tolist(), count) == ([order.index(text) for text in kept], len(order))
    assert read == kept
    assert read == tuple(kept)
    assert read == as_texts(kept)
    assert read != [*kept, "more"]
    assert read != 7
    assert all_different(column) == (len(set(kept)) == len(kept))
    by_first, found = read.numbered_by_first()
    assert ([found[k] for k in by_first.tolist()], found) == (kept, list(dict.fromkeys(kept)))
    repeated = [k for k, text in enumerate(kept) if text in kept[:k]]
    assert read.first_repeated() == (repeated[0] if repeated else None)
    assert list(read.take(np.arange(len(kept))[::-1])) == kept[::-1]
    assert read.all_start_with("a") == all(text.startswith("a") for text in kept)


def test_what_a_column_of_texts_prints() -> None:
    assert repr(as_texts([])) == "TextColumn(0 texts)"
    assert repr(as_texts(["a", "b"])) == "TextColumn(2 texts: 'a', 'b')"
    assert repr(as_texts(["a"] * 4000)) == "TextColumn(4,000 texts: 'a', 'a', 'a', ...)"


@settings(deadline=None)
@given(texts, texts)
def test_rows_of_texts_in_another_column(first: list[str], second: list[str]) -> None:
    second = list(dict.fromkeys(second))
    rows = as_texts(first).rows_in(as_texts(second))
    assert rows.tolist() == [second.index(text) if text in second else -1 for text in first]
    assert as_texts(first).equals(as_texts(second)) == (first == second)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=40), st.integers(0, 9))
def test_numbers(values: list[int], skipped: int) -> None:
    for array in (np.array(values, np.int64), np.array(values, np.int64) % 3 == 0, np.array(values, np.float64)):
        column = column_of(array)
        assert column.equals(pa.array(array.tolist(), column.type))
        parts = pa.chunked_array([column.slice(skipped), column.slice(0, skipped)], column.type)
        assert numbers_of(parts).tolist() == [*array[skipped:], *array[:skipped]]


def test_missing_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        numbers_of(pa.array([1.0, None]))


def test_rows_of_a_split(embedded_home: Path, home: Path) -> None:
    shutil.copytree(embedded_home / "datasets" / "snapshots", home / "datasets" / "snapshots")
    path = split_path("snapshots/test")
    table = pq.read_table(path)
    order = np.random.default_rng(0).permutation(len(table))
    for rows_a_group in (2, 30):
        pq.write_table(table, path, row_group_size=rows_a_group)
        file = SplitFile("snapshots/test")
        for rows in (np.arange(5, 9), np.array([8, 5, 5, 7]), order):
            for name in ("target_counts", "polygons"):
                assert file.rows(name, rows).to_pylist() == table[name].take(pa.array(rows)).to_pylist()
        whole = [value for part in file.parts("expression") for value in part.to_pylist()]
        assert whole == table["expression"].to_pylist()
    pq.write_table(table.drop_columns(["tags"]), path)
    with pytest.raises(DatasetError, match="no column tags"):
        SplitFile("snapshots/test")


def test_questions_are_samples_without_answers(embedded: Path) -> None:
    samples = load_samples("snapshots/test")
    for question, sample in zip(load_questions("snapshots/test")[0], samples, strict=True):
        names = ("sample_id", "image_id", "image_path", "height", "width", "expression", "address")
        assert [getattr(question, n) for n in names] == [getattr(sample, n) for n in names]
        assert not hasattr(question, "target")
