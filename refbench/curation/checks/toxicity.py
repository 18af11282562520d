"""A text classifier as a second opinion besides the word list, for users who have one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from refbench.adapters.pretrained import load_network, weights_sha256
from refbench.curation.checks.base import Reporter
from refbench.curation.items import ImageItems
from refbench.errors import DatasetError
from refbench.records import Finding

BATCH = 64


@dataclass(frozen=True)
class Toxic(Reporter):
    """A classifier of toxic texts gives an expression a score of at least `least`; used only if a recipe sets
    `weights`.

    `weights` is a folder written by `save_pretrained`, or a model id of the Hugging Face Hub; `revision` is the
    revision of the model. `label` is the name of the class that counts, as given in the config of the network. Networks
    with several labels that do not exclude each other are evaluated with sigmoids.
    """

    code: ClassVar[str] = "expression-toxic"
    weights: str = ""
    label: str = "toxic"
    least: float = 0.5
    revision: str = "main"
    device: str = "cpu"

    def find_in_split(self, images: Sequence[ImageItems]) -> Iterator[Finding]:
        if not self.weights:
            raise DatasetError(
                f"the check {self.code} needs a classifier; set weights under [checks.{self.code}] in the recipe"
            )
        network = load_network(AutoModelForSequenceClassification, self.weights, self.revision, torch.float32)
        network = network.to(self.device)
        tokenizer: Any = AutoTokenizer.from_pretrained(self.weights, revision=self.revision)
        labels = {str(name): int(k) for k, name in network.config.id2label.items()}
        if self.label not in labels:
            raise DatasetError(f"{self.weights} has no label {self.label!r}; its labels are {', '.join(labels)}")
        digest = weights_sha256(self.weights, self.revision)[:12]
        samples = [s for image in images for s in image.samples]
        for start in range(0, len(samples), BATCH):
            some = samples[start : start + BATCH]
            for sample, score in zip(some, self._scores(network, tokenizer, some, labels[self.label]), strict=True):
                if score >= self.least:
                    message = f"{sample.expression!r}: {score:.2f} {self.label} (weights {digest})"
                    yield self.on_expression(sample, message, score)

    @torch.inference_mode()
    def _scores(self, network: Any, tokenizer: Any, samples: Sequence[Any], label: int) -> list[float]:
        texts = tokenizer([s.expression for s in samples], padding=True, truncation=True, return_tensors="pt")
        logits = network(**texts.to(self.device)).logits.float()
        several = network.config.problem_type == "multi_label_classification"
        shares = logits.sigmoid() if several or logits.shape[1] == 1 else logits.softmax(dim=1)
        return [round(float(v), 6) for v in shares[:, label]]
