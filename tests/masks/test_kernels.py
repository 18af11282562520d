"""The compiled kernels against the same functions in Python, which stand in where there is no compiler."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refbench.masks import kernels, plain
from refbench.masks.mask import Mask
from refbench.masks.pairs import COUNTS, ERROR_COLUMNS
from refbench.masks.rle import end_to_end, intervals_of

PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="refbench was installed without a compiler")


USUAL_FORMS: list[Callable[[Mask], Any]] = [
    lambda mask: mask,
    Mask.to_rle,
    lambda mask: {"size": mask.size, "counts": mask.counts.decode(), "id": 7},
    lambda mask: {"counts": mask.counts, "size": list(mask.size)},
]


def drawn(random: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """Noise, or a few rectangles, with or without specks."""
    kind = random.integers(4)
    if kind == 0:
        return random.random((height, width)) < random.random()
    pixels = np.zeros((height, width), bool)
    for _ in range(random.integers(0, 5)):
        top, left = random.integers(height), random.integers(width)
        pixels[top : top + random.integers(1, height + 1), left : left + random.integers(1, width + 1)] ^= True
    return pixels | (random.random((height, width)) < 0.02) if kind == 1 else pixels


class Batch:
    """Pairs of masks of different sizes with objects, as the kernels take them."""

    def __init__(self, seed: int, n: int = 6) -> None:
        random = np.random.default_rng(seed)
        self.heights, self.widths = random.integers(1, 40, (2, n))
        self.px = random.integers(1, 6, n)
        sizes = list(zip(self.heights.tolist(), self.widths.tolist(), strict=True))
        self.masks = [[Mask.from_array(drawn(random, *size)) for size in sizes] for _ in range(2)]
        owners = [pair for pair in range(n) for _ in range(random.integers(4))]
        self.objects = [Mask.from_array(drawn(random, *sizes[pair])) for pair in owners]
        self.others = np.arange(len(owners))
        self.others_at = np.searchsorted(owners, np.arange(n + 1)).astype(np.int64)

    @property
    def codes(self) -> list[NDArray[np.generic]]:
        return [array for masks in self.masks for array in end_to_end([m.counts for m in masks])]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize(("name", "columns"), [("count_pairs", len(COUNTS)), ("count_bands", 4), ("count_outlines", 4)])
def test_counts_of_pairs(name: str, columns: int, seed: int) -> None:
    batch = Batch(seed)
    found = [np.full((len(batch.px), columns), -7) for _ in range(2)]
    returned = [
        getattr(module, name)(*batch.codes, batch.heights, batch.widths, batch.px, out)
        for module, out in zip((kernels, plain), found, strict=True)
    ]
    assert returned[0] == returned[1]
    assert found[0].tolist() == found[1].tolist()


@pytest.mark.parametrize("seed", range(60))
def test_counts_of_errors(seed: int) -> None:
    batch = Batch(seed)
    objects = end_to_end([m.counts for m in batch.objects])
    found = [np.full((len(batch.px), len(ERROR_COLUMNS)), -7) for _ in range(2)]
    for module, out in zip((kernels, plain), found, strict=True):
        sizes = (batch.heights, batch.widths, batch.px)
        module.count_errors(*batch.codes, *objects, batch.others, batch.others_at, *sizes, out)
    assert found[0].tolist() == found[1].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_masks_in_lists(seed: int) -> None:
    masks = Batch(seed).masks[0]
    given = [form(mask) for mask, form in zip(masks, itertools.cycle(USUAL_FORMS), strict=False)]
    for module in (kernels._found, plain):
        text, *numbers = module.read_masks(given, Mask)
        at, heights, widths = (np.frombuffer(part, np.int64).tolist() for part in numbers)
        codes = [text[a:b] for a, b in itertools.pairwise(at)]
        assert list(zip(heights, widths, codes, strict=True)) == [(m.height, m.width, m.counts) for m in masks]


@pytest.mark.parametrize(
    "odd",
    [
        None, 7, {}, {"size": [2, 3]}, {"counts": b"6"}, {"size": [2], "counts": b"6"},
        {"size": [2, 0], "counts": b"6"}, {"size": [2, -3], "counts": b"6"},
        {"size": [2, 2**70], "counts": b"6"}, {"size": [2, True], "counts": b"6"},
        {"size": [2, 3.0], "counts": b"6"}, {"size": "23", "counts": b"6"}, {"size": [2, 3], "counts": [6]},
        {"size": [2, 3], "counts": "\udc80"}, {"size": [2, 3], "counts": None},
    ],
)  # fmt: skip
def test_masks_in_other_forms_are_left_to_others(odd: object) -> None:
    usual = {"size": [2, 3], "counts": b"6"}
    for module in (kernels._found, plain):
        assert module.read_masks([usual, odd], Mask) is None
        assert module.read_masks([usual], Mask)[0] == b"6"
        assert module.read_masks([], Mask)[0] == b""


POLYGON = (0, 0.5, 3, 0, 3, 4)


@pytest.mark.parametrize(
    "odd",
    [
        None, 7, [], "012345", POLYGON[:4], (*POLYGON, 1), {0: 1}, np.array(POLYGON), [[0, 0], [3, 0], [3, 4]],
        (*POLYGON[:5], None), (*POLYGON[:5], "4"), (*POLYGON[:5], True), (*POLYGON[:5], float("nan")),
        (*POLYGON[:5], float("inf")), (*POLYGON[:5], 10**400), (*POLYGON[:5], 1001), (*POLYGON[:5], -1001),
        (*POLYGON[:5], 400.0),
    ],
    ids=repr,
)  # fmt: skip
def test_polygons_in_other_forms_are_left_to_others(odd: object) -> None:
    for module in (kernels._found, plain):
        corners, counts = module.read_polygons([list(POLYGON), POLYGON * 2], 1000.0)
        assert np.frombuffer(corners).tolist() == [*POLYGON, *POLYGON, *POLYGON]
        assert np.frombuffer(counts, np.int64).tolist() == [3, 6]
        assert module.read_polygons([POLYGON, odd], 1000.0) is None


@pytest.mark.parametrize("seed", range(60))
def test_runs(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 40, 2))
    pixels = [drawn(random, height, width) for _ in range(2)]
    codes = [Mask.from_array(p).counts for p in pixels]
    runs = [intervals_of(code, height, width) for code in codes]
    corners = random.random((random.integers(6, 12), 2)) * 60 - 10
    columns = np.sort(random.integers(0, width, 11))
    first_row = np.searchsorted(np.sort(random.integers(0, height, 13)), np.arange(height + 1))
    # Any byte but zero is foreground.
    bytes_of = pixels[0] * random.integers(1, 256, pixels[0].shape).astype(np.uint8)
    broken = codes[0][:-1] + bytes([random.integers(40, 120)])
    text, at = end_to_end([*codes, broken])
    found = []
    for module in (kernels, plain):
        out = np.zeros((8, 2000), np.int64)
        code = np.frombuffer(codes[0], np.uint8)
        written = np.zeros(7 * (2 * len(runs[0][0]) + 1), np.uint8)
        states = np.zeros(3, np.int8)
        module.check_codes(text, at, np.full(3, height * width), states)
        found.append(
            [
                module.decode_intervals(code, height * width, out[0], out[1]),
                module.encode_intervals(*runs[0], len(runs[0][0]), height * width, written),
                module.subtract_intervals(*runs[0], len(runs[0][0]), *runs[1], len(runs[1][0]), out[4], out[5]),
                [np.frombuffer(module.array_changes(bytes_of, apart), np.int64).tolist()
                 for apart in (False, True)],
                resized(module, *end_to_end(codes), height, width, columns, first_row),
                module.code_of_polygons(corners, np.array([3, len(corners) - 3]), height, width),
                [module.area_of_code(one, height * width) for one in codes],
                out.tolist(), written.tolist(), states.tolist(),
            ]
        )  # fmt: skip
    assert found[0] == found[1]


def resized(
    module: Any, text: Any, at: Any, height: int, width: int, columns: Any, first_row: Any
) -> tuple[bytes, list[int]]:
    both = [np.full(2, value) for value in (height, width, 0, 0, 13, len(columns))]
    code, positions = module.resize_codes(text, at, *both[:2], columns, both[2], first_row, both[3], *both[4:])
    return code, np.frombuffer(positions, np.int64).tolist()


def test_arguments_of_another_kind_are_refused() -> None:
    batch = Batch(0)
    out = np.zeros((len(batch.px), len(COUNTS)), np.int64)
    good = [*batch.codes, batch.heights, batch.widths, batch.px, out]
    for place, wrong, error in (
        (0, batch.codes[0][:3], "outside of the text"),
        (1, batch.codes[1][::-1].copy(), "not sorted"),
        (1, batch.codes[1].astype(np.int32), "items of another size"),
        (7, out[:2], "too short"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            kernels.count_pairs(*good[:place], wrong, *good[place + 1 :])
    with pytest.raises(ValueError, match="contiguous"):
        kernels.count_pairs(*good[:7], np.zeros((len(COUNTS), len(batch.px)), np.int64).T)
    with pytest.raises(ValueError, match="too short"):
        kernels.code_of_polygons(np.zeros((3, 2)), np.array([2**62, 2**62]), 4, 4)
    with pytest.raises(ValueError, match="negative"):
        kernels.code_of_polygons(np.zeros((3, 2)), np.array([3]), -4, 4)
    with pytest.raises(TypeError, match="number of arguments"):
        kernels.count_pairs(*good[:7])


def test_without_compiled_kernels(tmp_path: Path) -> None:
    """A copy of the package without them scores as the package does."""
    program = (
        "import refbench; from refbench.masks import kernels\n"
        "from refbench import Mask, pair_counts\n"
        "masks = [Mask.from_polygons([[k, 2, 30, 3 + k, 12, 20]], 24, 32) for k in range(8)]\n"
        "print(kernels.COMPILED, {k: v.tolist() for k, v in pair_counts(masks, masks[::-1]).items()})\n"
    )
    copy = tmp_path / "refbench"
    (copy / "masks").mkdir(parents=True)
    for path in (PROJECT / "refbench").iterdir():
        if path.name != "masks":
            (copy / path.name).symlink_to(path)
    for path in (PROJECT / "refbench" / "masks").iterdir():
        if not path.name.startswith("_kernels"):
            (copy / "masks" / path.name).symlink_to(path)
    said = []
    for folder in (PROJECT, tmp_path):
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        said.append([*ended.stdout.split(" ", 1), ended.stderr])
    assert [words[0] for words in said] == ["True", "False"]
    assert said[0][1] == said[1][1]
    assert ["install a C++ compiler" in words[2] for words in said] == [False, True]
