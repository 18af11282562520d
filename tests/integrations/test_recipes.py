"""The recipes of the guide on training, run against the real libraries on the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT
from events import wait_until

from refbench import ReferringMetric, collate, torch_dataset
from refbench.errors import MaskError

torch = pytest.importorskip("torch")

GUIDE = (PROJECT / "docs" / "guides" / "training.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r'```python title="(\w+)"\n(.*?)```', GUIDE, re.DOTALL))
SIDE, SAMPLES = 32, 40


def prepare(item: dict[str, Any]) -> dict[str, Any]:
    """Image and mask on a small grid."""
    height, width = item["mask"].shape
    rows, columns = np.arange(SIDE) * height // SIDE, np.arange(SIDE) * width // SIDE
    image = item["image"][rows][:, columns].astype(np.float32).transpose(2, 0, 1) / 255
    return {**item, "image": image, "mask": item["mask"][rows][:, columns]}


class Network(torch.nn.Module):
    """A network of one layer, whose masks are wrong but not empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        logits = self.layer(image)[:, 0]
        if mask is None:
            return logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask.float())
        return {"loss": loss, "logits": logits}


class Examples(torch.utils.data.Dataset):
    """The first samples of a split, on the small grid."""

    def __init__(self) -> None:
        self.data = torch_dataset("scenes/val", prepare)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= SAMPLES:
            raise IndexError(index)
        return self.data[index]


@pytest.fixture
def names(embedded: Path, tmp_path: Path) -> dict[str, Any]:
    """What the recipes use."""
    loader = torch.utils.data.DataLoader(Examples(), batch_size=8, collate_fn=collate)
    return {"prepare": prepare, "model": Network(), "loader": loader, "folder": str(tmp_path), "__name__": "recipe"}


def expected() -> dict[str, float]:
    """The figures of all examples in one batch."""
    examples = Examples()
    items = [examples[k] for k in range(SAMPLES)]
    metric = ReferringMetric()
    with torch.inference_mode():
        logits = Network()(torch.from_numpy(np.stack([i["image"] for i in items])))
    metric.update(logits > 0, np.stack([i["mask"] for i in items]))
    return metric.compute()


def run_recipe(name: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(RECIPES[name], f"{name} of docs/guides/training.md", "exec"), names)
    return names


def test_the_guide_has_these_recipes() -> None:
    assert list(RECIPES) == [
        "data", "prepare", "loop", "accelerate", "lightning", "lightning_all", "trainer", "wandb", "mlflow",
        "tensorboard",
    ]  # fmt: skip


def test_data(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "data", RECIPES["data"].replace("refcoco/val", "scenes/val"))
    batch = next(iter(run_recipe("data", names)["loader"]))
    assert batch["image"].shape == (8, 3, SIDE, SIDE)
    assert batch["mask"].shape == (8, SIDE, SIDE)


def test_loop(names: dict[str, Any]) -> None:
    figures = run_recipe("loop", names)["figures"]
    assert figures == {f"val/{name}": value for name, value in expected().items()}
    assert 0 < figures["val/mean_iou"] < 100


def test_accelerate(names: dict[str, Any]) -> None:
    pytest.importorskip("accelerate")
    assert run_recipe("accelerate", names)["figures"] == expected()


def test_lightning(names: dict[str, Any]) -> None:
    lightning = pytest.importorskip("lightning")
    module = run_recipe("lightning", names)["Module"](names["model"])
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False,
    )  # fmt: skip
    before = trainer.validate(module, names["loader"], verbose=False)
    assert before == [{"val/miou": pytest.approx(expected()["mean_iou"], abs=1e-9)}]
    trainer.fit(module, names["loader"], names["loader"])
    # The metric was reset between the epochs: it has the samples of one.
    assert 0 <= float(trainer.callback_metrics["val/miou"]) <= 100


def test_lightning_with_all_metrics(names: dict[str, Any]) -> None:
    lightning = pytest.importorskip("lightning")
    run_recipe("lightning", names)
    module = run_recipe("lightning_all", names)["WithAll"](names["model"])
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for _ in range(2):
        (found,) = trainer.validate(module, names["loader"], verbose=False)
        assert found == {f"val/{name}": pytest.approx(value, abs=1e-9) for name, value in expected().items()}


def test_prepare(names: dict[str, Any]) -> None:
    made = run_recipe("prepare", names)["prepare"](torch_dataset("scenes/val")[0])
    assert made["image"].shape == (3, 64, 96)
    assert made["mask"].shape == (64, 96)
    assert made["mask"].dtype == bool


@pytest.mark.parametrize("batched", [True, False])
def test_trainer(names: dict[str, Any], batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")

    class Few(Examples):
        def __getitem__(self, index: int) -> dict[str, Any]:
            item = super().__getitem__(index)
            return {"image": torch.from_numpy(item["image"]), "mask": torch.from_numpy(item["mask"]).float()}

    names["examples"] = Few()
    text = RECIPES["trainer"].replace("batch_eval_metrics=True", f"batch_eval_metrics={batched}")
    monkeypatch.setitem(RECIPES, "trainer", text.replace('report_to="none"', 'report_to="none", use_cpu=True'))
    figures = run_recipe("trainer", names)["figures"]
    for name, value in expected().items():
        assert figures[f"eval_{name}"] == pytest.approx(value, abs=1e-9)


def test_padded_batches_of_the_trainer_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    metrics = pytest.importorskip("refbench.integrations.transformers").TrainerMetrics()
    masks = np.ones((2, 4, 4), np.int64)
    logits = masks - 0.5
    logits[0, 3], masks[0, 3] = -100, -100
    with pytest.raises(MaskError, match="have different sizes, and the Trainer padded them"):
        metrics(transformers.EvalPrediction(predictions=logits, label_ids=masks))
    with pytest.raises(MaskError, match="0 and 1"):
        metrics(transformers.EvalPrediction(predictions=np.ones((1, 4, 4)), label_ids=np.full((1, 4, 4), 255)))


@pytest.fixture
def measured(names: dict[str, Any]) -> dict[str, Any]:
    names["metric"] = ReferringMetric()
    names["metric"].update(np.ones((2, 4, 4), bool), np.ones((2, 4, 4), bool))
    return names


def test_wandb(measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_recipe("wandb", measured)
    # What an offline run logs is in this file until it is synced.
    (log,) = {path.resolve() for path in tmp_path.rglob("*.wandb")}
    figures = measured["metric"].compute(prefix="val/")
    # Written by a process of its own.
    wait_until(lambda: all(name.encode() in log.read_bytes() for name in figures))
    content = log.read_bytes()
    for name, value in figures.items():
        at = content.index(name.encode())
        assert f"{value:g}".encode() in content[at : at + len(name) + 20]


def test_mlflow(measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path / 'mlruns'}")
    run_recipe("mlflow", measured)
    stored = mlflow.tracking.MlflowClient().get_run(mlflow.last_active_run().info.run_id)
    assert stored.data.metrics["val/mean_iou"] == 100


def test_tensorboard(measured: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_recipe("tensorboard", measured)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in events.Scalars("val/mean_iou")] == [100]
