"""`refbench curate why`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from refbench.cli.output import print_json, print_table, remark
from refbench.cli.paths import FilePath
from refbench.curation import history
from refbench.curation.history import Story


@click.command()
@click.argument("item_id", metavar="ID")
@click.argument("place", metavar="DIR|LEDGER", type=FilePath())
@click.option(
    "--picture",
    type=FilePath(),
    help="File for a picture that shows the mask before and after the change.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(item_id: str, place: Path, picture: Path | None, as_json: bool) -> None:
    """Show the history of one mask or expression.

    ID is a mask (DATASET/SPLIT/ANNOTATION) or an expression (its sample id). With a curation folder, the history
    includes findings, proposals and answers. With a LEDGER outside a curation folder, it is only the row of ID.

    \b
    Example:
      refbench curate why refcoco/val/590410 ~/.refbench/curation/refcoco-val --picture why.png
    """
    story = history.why(item_id, place)
    if picture is not None:
        drawn = history.story_picture(story)
        if drawn is None:
            remark(f"{item_id} has no mask to draw")
        else:
            try:
                drawn.save(picture)
            except ValueError as error:
                message = f"{picture} has no ending of an image, such as .png"
                raise click.BadParameter(message, param_hint="'--picture'") from error
            remark(f"{picture}: the source mask is green, the mask after curation is pink")
    if as_json:
        print_json(_json_of(story))
        return
    row = story.row
    print_table(item_id, ["what", "value"], [[k, str(v)] for k, v in _row_of(story).items() if str(v)])
    if story.decision is not None:
        print_table("the recipe", ["what", "value"], [[k, str(v)] for k, v in _recipe_of(story).items() if str(v)])
    if row.scores:
        print_table("scores", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in row.scores.items()])
    if story.findings:
        print_table(
            "findings", ["check", "severity", "message"], [[f.check, f.severity, f.message] for f in story.findings]
        )
    if story.proposals:
        rows = [
            [p.refiner, str(p.variant), f"{p.confidence:.2f}", f"{p.misfit_px:.2f}", p.error] for p in story.proposals
        ]
        print_table("proposals", ["refiner", "start", "confidence", "misfit px", "error"], rows)
    if len(story.agreement_names) > 1:
        rows = [
            [name, *(f"{v:.2f}" for v in values)]
            for name, values in zip(story.agreement_names, story.agreement, strict=True)
        ]
        print_table("boundary IoU with each other", ["", *story.agreement_names], rows)
    if story.answers:
        print_table(
            "answers",
            ["reviewer", "action", "time", "note"],
            [[a.reviewer, a.action, a.time, a.note] for a in story.answers],
        )


def _row_of(story: Story) -> dict[str, Any]:
    row = dataclasses.asdict(dataclasses.replace(story.row, mask=None))
    expression = {"expression": story.expression} if story.expression else {}
    return {**expression, **{k: v for k, v in row.items() if k not in ("mask", "scores", "item_id")}}


def _recipe_of(story: Story) -> dict[str, Any]:
    """What the recipe decided, and the thresholds of its rules for masks."""
    decision = story.decision
    if decision is None:
        return {}
    rules = {} if story.rules is None else dataclasses.asdict(story.rules)
    return {
        "action": str(decision.action), "cause": str(decision.cause), "reason": decision.reason,
        "would replace it": ", ".join(story.best), "thresholds": ", ".join(f"{k} {v}" for k, v in rules.items()),
    }  # fmt: skip


def _json_of(story: Story) -> dict[str, Any]:
    return {
        "item_id": story.row.item_id,
        **_row_of(story),
        "scores": dict(story.row.scores),
        "recipe": None
        if story.decision is None
        else {
            "action": story.decision.action,
            "cause": story.decision.cause,
            "reason": story.decision.reason,
            "best": list(story.best),
            "thresholds": None if story.rules is None else dataclasses.asdict(story.rules),
        },
        "agreement": dict(zip(story.agreement_names, story.agreement, strict=True)),
        "findings": [dataclasses.asdict(f) for f in story.findings],
        "proposals": [
            {n: getattr(p, n) for n in ("refiner", "variant", "confidence", "misfit_px", "error")}
            for p in story.proposals
        ],
        "answers": [
            {n: getattr(a, n) for n in ("reviewer", "action", "origin", "note", "time")} for a in story.answers
        ],
    }
