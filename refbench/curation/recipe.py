"""The recipe of a curation: checks, refiners and thresholds. The file is `datasets/<dataset>/recipe.toml`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refbench.errors import DatasetError
from refbench.records import Action
from refbench.storage.files import check_is_file

WITNESS, TRUSTED = "witness", "trusted"
INTERCEPT = "intercept"
# What the probability may rest on: figures of `curation.agreement.Agreement`.
FIGURES = ("agreement", "stability", "source_boundary_iou", "edge_gain_px", "misfit_px", "confidence")


@dataclass(frozen=True, slots=True)
class RefinerChoice:
    """A refiner with its role, its options and its number of variants (1 means that the refiner starts only from the
    source mask).

    The proposal of a `trusted` refiner is accepted if its variants agree with each other and with the source. The
    proposals of witnesses are accepted if they agree with each other.
    """

    name: str
    variants: int = 1
    role: str = WITNESS
    options: Mapping[str, Any] = field(default_factory=dict)


# Findings of the models that a recipe asks as validators, see `checks.validators`.
CONFIRMED, CONTRADICTED = "mask-confirmed", "mask-contradicted"


@dataclass(frozen=True, slots=True)
class ValidatorChoice:
    """A run of any adapter on the split; its answers vote on which mask an expression means."""

    run: str = ""


@dataclass(frozen=True, slots=True)
class AuditRules:
    """The checks whose findings leave a mask to a person (`review`), and those whose findings drop an item (`drop`).

    If a check in `review` has a finding on an expression, the mask of this expression is left to a person, but not the
    expression. If a check in `drop` has a finding on an expression, only the expression is dropped.
    """

    review: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MaskRules:
    """When a mask is accepted without a person.

    `refiners` is the minimum number of refiners with a proposal. A mask is kept or changed only if the expected
    boundary IoU of the best proposal with the true mask is at least `accept`. It is kept if its boundary IoU with this
    proposal is at least `keep`. Otherwise the proposal replaces it if the probability that the proposal is better is at
    least `better`. If the expected boundary IoU is below `drop`, the mask is dropped. Two masks are on the same object
    if the IoU of their proposals is at least `same_object`. `undecided` states what happens to masks that wait for a
    person.
    """

    refiners: int = 2
    accept: float = 0.82
    keep: float = 0.88
    better: float = 0.95
    drop: float = 0.0
    same_object: float = 0.5
    undecided: Action = Action.DROP


@dataclass(frozen=True, slots=True)
class LanguageRules:
    """What happens to expressions that the word list flags.

    `certain` applies to expressions that cannot be harmless, `doubtful` to the others. `toxic` applies to expressions
    that a classifier flags (the check expression-toxic). `undecided` applies to expressions that still wait for a
    person.
    """

    certain: Action = Action.DROP
    doubtful: Action = Action.REVIEW
    toxic: Action = Action.REVIEW
    undecided: Action = Action.DROP


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well agreement between witnesses predicts the quality of a mask, measured on the masks that `on` selects.

    `agreement` and `boundary_iou` are the knots of a curve that gives the expected boundary IoU of the best proposal
    with the true mask; values between knots are interpolated linearly. `better` contains the weights of a logistic
    regression, including an `intercept`, for the probability that the best proposal is better than the source.
    `thresholds` is only informative: for each value of `better`, it contains the share of masks that were accepted, and
    their quality. `sources` names the known sources that it was fitted on (`calibrate --known`); it is empty for a
    calibration on the scenes.
    """

    on: str = ""
    agreement: tuple[float, ...] = (0.0, 1.0)
    boundary_iou: tuple[float, ...] = (0.0, 1.0)
    better: Mapping[str, Any] = field(default_factory=dict)
    thresholds: tuple[Mapping[str, float], ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def is_fitted(self) -> bool:
        """Whether the calibration has been fitted. Without a fit, the agreement of proposals does not predict
        their quality.
        """
        return self != Calibration()

    def expected(self, agreement: float) -> float:
        """Expected boundary IoU with the true mask, between 0 and 1."""
        return float(np.interp(agreement, self.agreement, self.boundary_iou))

    def probably_better(self, figures: Mapping[str, float]) -> float:
        """Probability that the best proposal is better than the source, between 0 and 1; 0 if it was not fitted."""
        if not self.better:
            return 0.0
        total = sum(w * (1.0 if name == INTERCEPT else figures[name]) for name, w in self.better.items())
        return float(1 / (1 + np.exp(-np.clip(total, -50, 50))))


@dataclass(frozen=True, slots=True)
class TrustedCalibration:
    """How the score of the trusted refiner predicts the quality of a mask, as measured on the known sources in `on`.

    `score`, `boundary_iou` and `better` are knots; values between them are interpolated linearly. For a score
    (`curation.trusted.Trust.score`), they give the expected boundary IoU of the proposal with the true mask, and the
    share of proposals that are better than their source. The knots are valid only for the `refiner` with the weights
    `weights_sha256`, and for the refiners, prompts and options that `refiners_sha256` identifies.
    """

    on: tuple[str, ...] = ()
    refiner: str = ""
    witnesses: tuple[str, ...] = ()
    weights_sha256: str = ""
    refiners_sha256: str = ""
    score: tuple[float, ...] = ()
    boundary_iou: tuple[float, ...] = ()
    better: tuple[float, ...] = ()

    def expected(self, score: float) -> float:
        """Expected boundary IoU with the true mask, between 0 and 1; 0 below all measured scores."""
        return float(np.interp(score, self.score, self.boundary_iou, left=0.0)) if self.score else 0.0

    def probably_better(self, score: float) -> float:
        """Probability that the proposal is better than the source, between 0 and 1; 0 below all measured scores."""
        return float(np.interp(score, self.score, self.better, left=0.0)) if self.score else 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """All settings of a curation. `sha256` is the hash of the file, `text` its content."""

    name: str
    text: str
    checks: Mapping[str, Mapping[str, Any]]
    refiners: tuple[RefinerChoice, ...]
    audit: AuditRules
    masks: MaskRules
    language: LanguageRules
    calibration: Calibration
    trusted: TrustedCalibration = field(default_factory=TrustedCalibration)
    reviewers: int = 1
    validators: tuple[ValidatorChoice, ...] = ()

    @property
    def holding(self) -> tuple[str, ...]:
        """The checks whose findings leave a mask to a person."""
        return (*self.audit.review, *((CONTRADICTED,) if self.validators else ()))

    @property
    def trusted_refiner(self) -> RefinerChoice | None:
        """The refiner with the role `trusted`, if there is one."""
        return next((c for c in self.refiners if c.role == TRUSTED), None)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        DatasetError: the file is not valid TOML, has an unknown key, or has a value of the wrong type or out of range;
            the message names the file and the key.
    """
    return parse_recipe(text_of_recipe(path), str(path))


def text_of_recipe(path: Path) -> str:
    """The text of a recipe file, without checking its keys; DatasetError if it cannot be read or is not TOML."""
    try:
        check_is_file(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the recipe {path} cannot be read: {error}") from None
    _parse_toml(text, str(path))
    return text


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: brackets may be nested too deeply, and a number may have too many digits.
        raise DatasetError(f"{where} is not valid TOML: {error}") from None


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe; `where` names it in error messages."""
    content = _parse_toml(text, where)
    known = {"name", "reviewers", "checks", "refiners", "validators", "audit", "masks", "language", "calibration"}
    known |= {"trusted"}
    _only(content, known, where)
    calibration = _record(Calibration, content.get("calibration", {}), f"{where}, [calibration]")
    _check_knots(calibration, where)
    refiners = _refiners(content.get("refiners", []), where)
    trusted = _record(TrustedCalibration, content.get("trusted", {}), f"{where}, [trusted]")
    _check_trusted(trusted, refiners, where)
    recipe = Recipe(
        name=_typed(content.get("name", "recipe"), str, f"{where}, name"),
        text=text,
        checks=_tables(content.get("checks", {}), f"{where}, [checks]"),
        refiners=refiners,
        audit=_record(AuditRules, content.get("audit", {}), f"{where}, [audit]"),
        masks=_record(MaskRules, content.get("masks", {}), f"{where}, [masks]"),
        language=_record(LanguageRules, content.get("language", {}), f"{where}, [language]"),
        calibration=calibration,
        trusted=trusted,
        reviewers=_typed(content.get("reviewers", 1), int, f"{where}, reviewers"),
        validators=_validators(content.get("validators", []), where),
    )
    if recipe.reviewers < 1:
        raise DatasetError(f"{where}: reviewers must be at least 1, got {recipe.reviewers}")
    for key, value, choices in (
        ("masks.undecided", recipe.masks.undecided, (Action.KEEP, Action.DROP)),
        ("language.certain", recipe.language.certain, (Action.KEEP, Action.DROP, Action.REVIEW)),
        ("language.doubtful", recipe.language.doubtful, (Action.KEEP, Action.DROP, Action.REVIEW)),
        ("language.toxic", recipe.language.toxic, (Action.KEEP, Action.DROP, Action.REVIEW)),
        ("language.undecided", recipe.language.undecided, (Action.KEEP, Action.DROP)),
    ):
        if value not in choices:
            raise DatasetError(f"{where}: {key} must be one of {', '.join(choices)}, got {value!r}")
    for name in ("accept", "keep", "better", "drop", "same_object"):
        if not 0 <= getattr(recipe.masks, name) <= 1:
            raise DatasetError(f"{where}: masks.{name} must be between 0 and 1, got {getattr(recipe.masks, name):g}")
    return recipe


def _validators(rows: Any, where: str) -> tuple[ValidatorChoice, ...]:
    if not isinstance(rows, list):
        raise DatasetError(f"{where}: write each validator as a table [[validators]]")
    chosen = tuple(_record(ValidatorChoice, row, f"{where}, [[validators]] {k + 1}") for k, row in enumerate(rows))
    if not all(choice.run for choice in chosen):
        raise DatasetError(f"{where}: a validator needs the folder of a run: run = FOLDER")
    return chosen


def _refiners(rows: Any, where: str) -> tuple[RefinerChoice, ...]:
    if not isinstance(rows, list):
        raise DatasetError(f"{where}: write each refiner as a table [[refiners]]")
    chosen = tuple(_record(RefinerChoice, row, f"{where}, [[refiners]] {k + 1}") for k, row in enumerate(rows))
    for choice in chosen:
        if not 1 <= choice.variants <= 7:
            raise DatasetError(
                f"{where}: the number of variants of {choice.name} must be between 1 and 7, got {choice.variants}"
            )
        if choice.role not in (WITNESS, TRUSTED):
            raise DatasetError(
                f"{where}: the role of {choice.name} must be {WITNESS} or {TRUSTED}, got {choice.role!r}"
            )
        if choice.role == TRUSTED and choice.variants < 2:
            raise DatasetError(f"{where}: the trusted refiner {choice.name} needs at least 2 variants")
    if sum(c.role == TRUSTED for c in chosen) > 1:
        raise DatasetError(f"{where}: only one refiner can have the role {TRUSTED}")
    names = [c.name for c in chosen]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"{where} lists the refiner {name} twice")
    return chosen


def _record(kind: Any, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise DatasetError(f"{where} must be a table, got {table!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    _only(table, set(fields), where)
    values = {}
    for key, value in table.items():
        values[key] = _field(fields[key].type, value, f"{where}, {key}")
    try:
        return kind(**values)
    except TypeError:
        lacking = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
        raise DatasetError(f"{where} lacks {', '.join(lacking)}") from None


def _field(kind: Any, value: Any, where: str) -> Any:
    text = str(kind)
    if text.startswith("tuple[str"):
        return tuple(_typed(v, str, where) for v in _typed(value, list, where))
    if text.startswith("tuple[float"):
        return tuple(_number(v, where) for v in _typed(value, list, where))
    if text.startswith("tuple"):
        return tuple(_typed(v, dict, where) for v in _typed(value, list, where))
    if text.startswith("Mapping"):
        return _typed(value, dict, where)
    if text == "Action":
        # Which of them a field may hold is checked once the recipe is whole.
        return Action(value) if value in set(Action) else _typed(value, str, where)
    if text == "float":
        return _number(value, where)
    return _typed(value, {"str": str, "int": int}[text], where)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DatasetError(f"{where} must be a number, got {value!r}")
    return float(value)


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DatasetError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value


def _tables(value: Any, where: str) -> Mapping[str, Mapping[str, Any]]:
    return {name: _typed(table, dict, f"{where} {name}") for name, table in _typed(value, dict, where).items()}


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise DatasetError(f"{where}: unknown key {unknown[0]!r}; the allowed keys are {', '.join(sorted(known))}")


def _check_knots(calibration: Calibration, where: str) -> None:
    x, y = calibration.agreement, calibration.boundary_iou
    if len(x) != len(y) or len(x) < 2 or not _rising(x, strictly=True) or not _rising(y, strictly=False):
        raise DatasetError(
            f"{where}, [calibration]: agreement and boundary_iou must have the same length and increasing values"
        )
    for name, weight in calibration.better.items():
        _number(weight, f"{where}, [calibration], better.{name}")
        if name not in (INTERCEPT, *FIGURES):
            raise DatasetError(
                f"{where}, [calibration], better: unknown name {name!r}; choose from {', '.join((INTERCEPT, *FIGURES))}"
            )


def _check_trusted(trusted: TrustedCalibration, refiners: Sequence[RefinerChoice], where: str) -> None:
    if trusted == TrustedCalibration():
        return
    lengths = {len(trusted.score), len(trusted.boundary_iou), len(trusted.better)}
    rising = _rising(trusted.boundary_iou, strictly=False) and _rising(trusted.better, strictly=False)
    if len(lengths) > 1 or len(trusted.score) < 2 or not _rising(trusted.score, strictly=True) or not rising:
        raise DatasetError(
            f"{where}, [trusted]: score, boundary_iou and better must have the same length and increasing values"
        )
    if trusted.refiners_sha256 != refiners_sha256(refiners):
        raise DatasetError(
            f"{where}: [trusted] was calibrated for the refiner {trusted.refiner} and the witnesses "
            f"{_names(trusted.witnesses)}, but the refiners, variants or options of the recipe have changed; run "
            "`refbench curate calibrate --known` again"
        )


def refiners_sha256(refiners: Sequence[RefinerChoice]) -> str:
    """The sha256 of the refiners of a recipe with their roles, variants and options, in any order."""
    rows = sorted(json.dumps(dataclasses.asdict(choice), sort_keys=True, default=str) for choice in refiners)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _rising(values: Sequence[float], strictly: bool) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() if strictly else (steps >= 0).all())
