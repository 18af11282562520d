"""Basic types: frozen dataclasses, most of which are one row of a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from refbench.masks.mask import Mask
from refbench.plugins.loading import load_attribute

# A count in a file that a stranger may have written, checked where it is read.
Count = Annotated[int, Meta(ge=0, le=2**40)]

# Tags that scoring reads. This one marks samples with pixels to ignore: crowds and objects of this category.
IGNORED_TAG, IGNORED_CATEGORY = "ignore-region", "ignore"
# Marks polygons with integer coordinates: all of them or, as in `integer-polygons-0-2`, those with these indices.
WHOLE_NUMBERS_TAG = "integer-polygons"


@dataclass(frozen=True, slots=True)
class Question:
    """One expression about one image, without its answer: what a model is asked.

    `sample_id` is `<dataset>/<split>/<ref>/<sentence>`. `image_path` is absolute after loading, or "" if the dataset
    was built without images.
    """

    sample_id: str
    image_id: str
    image_path: str
    height: int
    width: int
    expression: str

    @property
    def dataset(self) -> str:
        """The dataset of the sample, for example "refcoco"."""
        return self.sample_id.split("/", 1)[0]

    @property
    def split(self) -> str:
        """The split of the sample, for example "testA"."""
        return self.sample_id.split("/", 2)[1]

    @property
    def address(self) -> str:
        """Dataset and split, for example "refcoco/testA"."""
        return f"{self.dataset}/{self.split}"


@dataclass(frozen=True, slots=True)
class Sample(Question):
    """One expression about one image, with its target mask.

    The first fields are those of a `Question`. `polygons` are the source polygons of the target (all parts of all
    objects), because some protocols rasterise them differently; empty if the source has none. `box_xywh` is [left, top,
    width, height] in pixels.
    """

    raw_expression: str
    ref_id: str
    sent_id: str
    ann_ids: tuple[str, ...]
    category: str
    target: Mask
    no_target: bool
    polygons: tuple[tuple[float, ...], ...] = ()
    box_xywh: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    tags: tuple[str, ...] = ()

    def __repr__(self) -> str:
        target = "no target" if self.no_target else f"{self.category}, {self.target!r}"
        return f"Sample({self.sample_id!r}, {self.expression!r}, {target})"

    def _repr_html_(self) -> str:
        cell: str = load_attribute("refbench.reports.cells:sample_cell")(self)
        return cell


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """An annotated object of an image, with or without an expression (a distractor)."""

    ann_id: str
    image_id: str
    category: str
    crowd: bool
    mask: Mask
    polygons: tuple[tuple[float, ...], ...] = ()
    box_xywh: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __repr__(self) -> str:
        return f"AnnotatedObject({self.ann_id!r}, {self.category}{', crowd' if self.crowd else ''}, {self.mask!r})"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a segmenter can return instead of a mask.

    `mask` and the masks of `instances` are bool (H, W) arrays, tensors or `Mask`s. `no_target` is None if the segmenter
    does not predict whether there is a target; in this case, an empty mask means that there is no target. `score` is a
    confidence between 0 and 1.

    Example:
        >>> from refbench import Answer, Mask
        >>> Answer(Mask.empty(480, 640), no_target=True, score=0.9).no_target
        True
    """

    mask: Any
    no_target: bool | None = None
    score: float | None = None
    instances: Sequence[tuple[Any, float]] = ()
    note: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    mask: Mask
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one sample. On failure, `error` contains the reason and `mask` is empty."""

    sample_id: str
    mask: Mask
    score: float | None = None
    no_target: bool | None = None
    instances: tuple[Instance, ...] = ()
    error: str = ""
    note: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check for one mask, expression or image.

    `subject` is "mask", "expression" or "image". `item_id` is the mask id (see `curation.items`), the sample id of the
    expression, or the image id. `severity` is "error" (unusable), "warning" (probably wrong) or "note". `value` is the
    measured value in the message, or NaN.
    """

    check: str
    severity: str
    subject: str
    item_id: str
    image_id: str
    message: str
    value: float = math.nan


@dataclass(frozen=True, slots=True)
class Proposal:
    """The answer of a refiner for one mask. `variant` 0 starts from the source mask, other variants from a modified
    one.

    `confidence` is that of the refiner, between 0 and 1. `misfit_px` and `source_misfit_px` are the mean distances from
    the outlines of this mask and of the source mask to the edges of the image. If it failed, `error` states why, and
    `mask` is empty.
    """

    mask_id: str
    refiner: str
    variant: int
    mask: Mask
    confidence: float
    misfit_px: float = 0.0
    source_misfit_px: float = 0.0
    error: str = ""


class Action(StrEnum):
    """The decision about a mask or an expression. The review page uses the same words."""

    KEEP = "keep"
    CHANGE = "change"
    DROP = "drop"
    REVIEW = "review"


class Cause(StrEnum):
    """Why a decision was made; `Decision.reason` states it as text."""

    FINDING = "finding"
    WORD = "word"
    CLASSIFIER = "classifier"
    NO_OBJECTION = "no-objection"
    NO_PROPOSAL = "no-proposal"
    SAME_OBJECT = "same-object"
    TOO_FEW_REFINERS = "too-few-refiners"
    SOURCE_CONFIRMED = "source-confirmed"
    AGREED = "agreed"
    NOT_BETTER = "not-better"
    DISAGREED = "disagreed"
    AGREED_TOO_LITTLE = "agreed-too-little"
    NOT_CALIBRATED = "not-calibrated"
    MASK_DROPPED = "mask-dropped"
    PUBLISHED = "published"
    PERSON = "person"
    UNKNOWN = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one mask or expression, and its reason.

    `mask` is the new mask if the action is CHANGE. `scores` are the values behind the decision. `reviewer` and `time`
    are empty if a recipe decided. `cause` is UNKNOWN in files of versions before 0.1.
    """

    item_id: str
    action: Action
    stage: str
    reason: str
    mask: Mask | None = None
    refiner: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    reviewer: str = ""
    time: str = ""
    cause: Cause = Cause.UNKNOWN


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric in percent with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics of a split under a protocol; `samples` is the number of samples that the protocol counts."""

    protocol: str
    metrics: dict[str, Estimate]
    samples: int
    failures: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The origin of the predictions of a run: the content of run.json.

    Fields with a default may be missing in files of earlier versions.
    """

    adapter: str
    adapter_options: dict[str, Any] = field(default_factory=dict)
    code_sha256: str = ""
    weights_sha256: str = ""
    dataset: str
    split: str
    fingerprint: str
    samples: Count
    shards: Count
    limit: Count | None = None
    batch_size: Count = 0
    device: str = ""
    seed: Count = 0
    refbench_version: str = ""
    git: dict[str, str | bool] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    device_name: str = ""
    arguments: list[str] = field(default_factory=list)
    started: str = ""
    finished: str = ""
    failures: Count = 0
    notes: list[str] = field(default_factory=list)
    batch_pixels: Count | None = None
    mode: str = ""
    deterministic: bool = False
    engine: str = "local"
    workers: Count = 1
    answer_notes: dict[str, Count] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The split of the run, for example "refcoco/testA"."""
        return f"{self.dataset}/{self.split}"
