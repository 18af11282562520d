"""`predictions`: returns the masks of a predictions file, so that results from elsewhere get a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refbench.errors import MaskError, PredictionError
from refbench.masks.mask import Mask
from refbench.records import Answer, Question
from refbench.storage.files import path_sha256
from refbench.storage.manifest import parse_address
from refbench.storage.predictions import Claim, Claims, SampleIndex
from refbench.storage.samples import split_table


class Predictions:
    """Predictions from a file in any of the formats that `refbench score` reads.

    Args:
        file: JSON lines, COCO results as JSON, NPZ, or a folder of PNG masks.
    """

    name = "predictions"
    needs_images = False
    questions_suffice = True

    def __init__(self, file: Path) -> None:
        if not file.exists():
            raise PredictionError(f"{file} does not exist")
        self.file = file
        self.weights_sha256 = path_sha256(file)
        self._claims: dict[str, dict[str, tuple[str, Claim]]] = {}

    def segment_samples(self, samples: Sequence[Question], images: Sequence[Any]) -> list[Answer]:
        return [self._answer(s) for s in samples]

    def _answer(self, sample: Question) -> Answer:
        address = sample.address
        if address not in self._claims:
            self._claims[address] = self._read(address)
        found = self._claims[address].get(sample.sample_id)
        if found is None:
            raise PredictionError(f"{self.file} has no prediction for the sample {sample.sample_id}")
        where, claim = found
        try:
            mask = Mask(sample.height, sample.width, claim.counts)
            instances = [(Mask(sample.height, sample.width, c), s) for c, s in claim.instances]
        except MaskError as error:
            raise PredictionError(f"{where}: {error}") from None
        return Answer(mask, claim.no_target, claim.score, instances)

    def _read(self, address: str) -> dict[str, tuple[str, Claim]]:
        parse_address(address)
        table = split_table(address, ["sample_id", "height", "width"])
        sample_ids = table["sample_id"].to_pylist()
        sizes = np.asarray(table["height"]), np.asarray(table["width"])
        index = SampleIndex(sample_ids, *sizes)
        return {sample_ids[row]: (where, claim) for where, row, claim in Claims(self.file, index)}
