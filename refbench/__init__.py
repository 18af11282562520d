"""refbench: datasets, runs and scores for referring image segmentation.

Each name below is imported when it is first used, so `import refbench` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench._version import __version__
from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench import curation as curate
    from refbench.adapters.base import Segmenter
    from refbench.datasets.building import build
    from refbench.datasets.collation import collate
    from refbench.datasets.exporters import export
    from refbench.datasets.hf_datasets import as_hf
    from refbench.datasets.in_training import torch_dataset
    from refbench.datasets.overlaps import overlap
    from refbench.datasets.verification import verify
    from refbench.masks.counting import pair_counts
    from refbench.masks.mask import Mask
    from refbench.records import Answer, Sample
    from refbench.reports import plot
    from refbench.reports.comparison import compare
    from refbench.reports.diagnosis import diagnose
    from refbench.reports.frames import protocols_frame, runs_frame, samples_frame
    from refbench.reports.latex import to_latex
    from refbench.reports.standings import leaderboard_frame
    from refbench.runs.folder import read_run
    from refbench.runs.runner import run
    from refbench.scoring.counts import read_scores
    from refbench.scoring.referring_metric import ReferringMetric
    from refbench.scoring.scorer import score
    from refbench.storage.prediction_files import write_predictions
    from refbench.storage.samples import load_samples, sample_table

__all__ = [
    "Answer",
    "Mask",
    "ReferringMetric",
    "Sample",
    "Segmenter",
    "__version__",
    "as_hf",
    "build",
    "collate",
    "compare",
    "curate",
    "diagnose",
    "export",
    "leaderboard_frame",
    "load_samples",
    "overlap",
    "pair_counts",
    "plot",
    "protocols_frame",
    "read_run",
    "read_scores",
    "run",
    "runs_frame",
    "sample_table",
    "samples_frame",
    "score",
    "to_latex",
    "torch_dataset",
    "verify",
    "write_predictions",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Mask": "refbench.masks.mask:Mask",
        "pair_counts": "refbench.masks.counting:pair_counts",
        "Sample": "refbench.records:Sample",
        "Answer": "refbench.records:Answer",
        "load_samples": "refbench.storage.samples:load_samples",
        "sample_table": "refbench.storage.samples:sample_table",
        "as_hf": "refbench.datasets.hf_datasets:as_hf",
        "build": "refbench.datasets.building:build",
        "collate": "refbench.datasets.collation:collate",
        "compare": "refbench.reports.comparison:compare",
        "curate": "refbench.curation",
        "diagnose": "refbench.reports.diagnosis:diagnose",
        "export": "refbench.datasets.exporters:export",
        "overlap": "refbench.datasets.overlaps:overlap",
        "read_run": "refbench.runs.folder:read_run",
        "read_scores": "refbench.scoring.counts:read_scores",
        "torch_dataset": "refbench.datasets.in_training:torch_dataset",
        "verify": "refbench.datasets.verification:verify",
        "run": "refbench.runs.runner:run",
        "score": "refbench.scoring.scorer:score",
        "Segmenter": "refbench.adapters.base:Segmenter",
        "ReferringMetric": "refbench.scoring.referring_metric:ReferringMetric",
        "samples_frame": "refbench.reports.frames:samples_frame",
        "runs_frame": "refbench.reports.frames:runs_frame",
        "protocols_frame": "refbench.reports.frames:protocols_frame",
        "plot": "refbench.reports.plot",
        "to_latex": "refbench.reports.latex:to_latex",
        "leaderboard_frame": "refbench.reports.standings:leaderboard_frame",
        "write_predictions": "refbench.storage.prediction_files:write_predictions",
    },
)
