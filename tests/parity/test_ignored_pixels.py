"""Pixels that ReasonSeg says to ignore: who leaves them out, and who counts them as ground."""

from __future__ import annotations

import json
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from refbench import Mask, load_samples, score
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.plugins.loading import load
from refbench.storage.progress import silent

# dvlab-research/LISA utils/dataset.py paints them 255, which its intersectionAndUnionGPU drops; the others were made of
# it. congvvc/HyperSeg hyperseg/model/tracker/box_ops.py:get_mask_from_json paints them 0.
LEFT_OUT = ("lisa", "evf-sam", "sa2va", "glamm-3", "gsva-gres")
GROUND = ("hyperseg", "instructseg", "psalm", "cris", "lavt-480")


def test_an_answer_that_covers_them(tmp_path: Path, home: Path) -> None:
    sources = Sources(mini.write_reasonseg(tmp_path, mini.reasonseg()))
    build_dataset("reasonseg", load("builders", "reasonseg"), sources, silent)
    rows = []
    for sample in load_samples("reasonseg/val"):
        covered = sample.target.to_array()
        # The miniature ignores a square but for the target in its middle; shapes are drawn with their outline by LISA.
        covered[20:40, 20:40] = True
        mask = Mask.from_array(covered)
        rows.append({"sample_id": sample.sample_id, "size": list(mask.size), "counts": mask.counts.decode("ascii")})
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = score(file, "reasonseg/val", protocols=[*LEFT_OUT, *GROUND]).summaries
    whole, target = 40 * 40, 40 * 40 - 20 * 20 + 5 * 5
    for name in LEFT_OUT:
        assert found[name].metrics[load("protocols", name).headline].value == pytest.approx(100, abs=0.01), name
    for name in GROUND:
        # OpenCV's targets and canvases differ by the outline; what is lost for covering them is a quarter.
        value = found[name].metrics[load("protocols", name).headline].value
        assert value == pytest.approx(100 * target / whole, abs=4), name
    assert np.count_nonzero(load_samples("reasonseg/val")[0].target.to_array()) == target
