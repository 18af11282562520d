"""Writes predictions in the formats that `refbench score` reads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refbench.errors import MaskError, PredictionError
from refbench.masks.conversion import mask_of
from refbench.records import Prediction
from refbench.storage.files import atomic_file
from refbench.storage.predictions import json_line

JSONL, PNG, PNG_NESTED = "jsonl", "png", "png-nested"
FORMS = (JSONL, PNG, PNG_NESTED)


def write_predictions(
    path: Path | str, rows: Mapping[str, Any] | Iterable[tuple[Any, ...]], *, form: str = JSONL
) -> Path:
    """Write masks to a file or folder that `refbench score` reads.

    Args:
        path: the file, or the folder if `form` is "png" or "png-nested"; an existing file is replaced, an existing
            folder must be empty.
        rows: `(sample_id, mask)` or `(sample_id, mask, score)`, or a mapping of sample ids to masks. A mask is a
            `Mask`, a COCO run-length code, a bool or 0/1 array (H, W), or a tensor of this kind on any device. `score`
            is a number, or None.
        form: "jsonl" for JSON lines, "png" for one PNG file per sample with `__` instead of `/` in its name, or
            "png-nested" for PNG files in subfolders. PNG files contain no scores.

    Returns:
        The path that was written.

    Raises:
        PredictionError: a sample occurs twice, a mask or a score is invalid, or the folder is not empty; the message
            names the sample.

    Example:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = write_predictions(f"{folder.name}/p.jsonl", [("snapshots/test/0/0", np.ones((2, 3), bool), 0.9)])
        >>> path.read_text().strip()
        '{"sample_id":"snapshots/test/0/0","size":[2,3],"counts":"06","score":0.9}'
    """
    path = Path(path)
    if form not in FORMS:
        raise PredictionError(f"unknown form {form!r}; choose from {', '.join(FORMS)}")
    if form == JSONL:
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for prediction in _predictions(rows):
                file.write(json_line(prediction) + "\n")
        return path
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PredictionError(f"{path} already exists and is not an empty folder; choose another one")
    path.mkdir(parents=True, exist_ok=True)
    for prediction in _predictions(rows):
        name = prediction.sample_id.replace("/", "__") if form == PNG else prediction.sample_id
        file_path = Path(os.path.normpath(path / f"{name}.png"))
        if not file_path.is_relative_to(os.path.normpath(path)):
            raise PredictionError(f"the sample id {prediction.sample_id!r} leads out of {path}; use form='jsonl'")
        file_path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file_path) as temporary:
            Image.fromarray(prediction.mask.to_array().astype(np.uint8) * 255).save(temporary, "PNG")
    return path


def _predictions(rows: Mapping[str, Any] | Iterable[tuple[Any, ...]]) -> Iterable[Prediction]:
    seen = set()
    for number, row in enumerate(rows.items() if isinstance(rows, Mapping) else rows):
        if not isinstance(row, (tuple, list)) or len(row) not in (2, 3):
            raise PredictionError(
                f"row {number} must be (sample_id, mask) or (sample_id, mask, score), got {type(row).__name__}"
            )
        sample_id, mask, score = (*row, None)[:3]
        if not isinstance(sample_id, str) or not sample_id:
            raise PredictionError(f"row {number}: the sample id must be a text, got {sample_id!r}")
        if sample_id in seen:
            raise PredictionError(f"row {number}: the sample {sample_id} occurs twice; write each sample once")
        seen.add(sample_id)
        if score is not None:
            try:
                score = float(score)
            except (TypeError, ValueError):
                score = math.nan
            if not math.isfinite(score):
                raise PredictionError(f"row {number} ({sample_id}): the score must be a finite number or None")
        try:
            yield Prediction(sample_id, mask_of(mask), score)
        except MaskError as error:
            raise PredictionError(f"row {number} ({sample_id}): {error}") from None
