"""How often checks are right: counted by hand, the results of the package, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from curation.bright_objects import build_bright

from refbench.cli.curate.audit import audit as audit_command
from refbench.cli.list import list_
from refbench.curation.agreement import boundary_iou
from refbench.curation.check_quality import CheckQuality, measure_checks, measured_checks
from refbench.curation.findings import audit
from refbench.curation.folder import load_items
from refbench.curation.known_sources import truth_of
from refbench.curation.recipe import parse_recipe
from refbench.errors import DatasetError
from refbench.plugins.loading import available


def test_measured_checks_are_counted_mask_by_mask(home: Path, tmp_path: Path) -> None:
    truth = build_bright(tmp_path / "a", "refcoco", 12, wrong=3)
    audited = audit("refcoco/val", parse_recipe("", "r"), out=tmp_path / "c", workers=1)
    measured = {q.check: q for q in measure_checks("refcoco/val", audited, truth, "discs")}
    images = load_items("refcoco/val")
    known = truth_of(truth, images)
    faulty = set()
    for target in (t for image in images for t in image.masks):
        true, wrong = known[target.mask_id]
        if wrong or boundary_iou([target.mask], [true])[0] < 0.7:
            faulty.add(target.mask_id)
    assert len(faulty) >= 3
    for name in audited.checks:
        found = {f.item_id for f in audited.findings if f.check == name and f.subject == "mask"}
        if any(f.check == name and f.subject != "mask" for f in audited.findings):
            continue
        expected = CheckQuality("discs", name, 12, len(faulty), len(found), len(found & faulty))
        assert measured[name] == expected
    assert any(q.found and q.right for q in measured.values())


def test_precision_and_recall() -> None:
    quality = CheckQuality("s", "c", masks=20, faulty=5, found=8, right=4)
    assert (quality.precision, quality.recall, quality.base_rate) == (0.5, 0.8, 0.25)
    nothing = CheckQuality("s", "c", masks=20, faulty=0, found=0, right=0)
    assert nothing.precision is None
    assert nothing.recall is None


def test_the_results_of_the_package_are_possible() -> None:
    measured = measured_checks()
    assert {q.source for q in measured} == {"photographs", "rendered scenes"}
    assert {q.check for q in measured} <= set(available("checks"))
    for quality in measured:
        assert 0 <= quality.right <= min(quality.found, quality.faulty) <= quality.masks
    shown = CliRunner().invoke(list_, ["checks"])
    assert "32% of 50" in shown.output
    listed = json.loads(CliRunner().invoke(list_, ["checks", "--json"]).output)["checks"]
    assert [len(c["measured"]) for c in listed if c["name"] == "mask-off-edges"] == [2]


def test_audit_measures_with_known_masks(home: Path, tmp_path: Path) -> None:
    truth = build_bright(tmp_path / "a", "refcoco", 6, wrong=1)
    words = ["refcoco/val", "--out", str(tmp_path / "c"), "--truth", str(truth), "--workers", "1"]
    done = CliRunner().invoke(audit_command, [*words, "--json"])
    rows = json.loads(done.stdout)["measured"]
    assert {row["masks"] for row in rows} == {6}
    assert {row["source"] for row in rows} == {"refcoco/val (a)"}
    assert "faulty" in CliRunner().invoke(audit_command, words).output
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(DatasetError, match="contains no mask of this split"):
        CliRunner().invoke(audit_command, [*words, "--truth", str(tmp_path / "none.json")], catch_exceptions=False)
