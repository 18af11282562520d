"""refbench: datasets, runs and scores for referring image segmentation.

Each name below is imported when it is first used, so `import refbench` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench._version import __version__
from refbench.plugins.loading import lazy_face

if TYPE_CHECKING:
    from refbench.adapters.base import Segmenter
    from refbench.masks.counting import pair_counts
    from refbench.masks.mask import Mask
    from refbench.records import Answer, Sample
    from refbench.reports import plot
    from refbench.reports.frames import protocols_frame, runs_frame, samples_frame
    from refbench.reports.latex import to_latex
    from refbench.reports.standings import leaderboard_frame
    from refbench.runs.runner import run
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
    "leaderboard_frame",
    "load_samples",
    "pair_counts",
    "plot",
    "protocols_frame",
    "run",
    "runs_frame",
    "sample_table",
    "samples_frame",
    "score",
    "to_latex",
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
