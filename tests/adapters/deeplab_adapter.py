"""A real pretrained model: DeepLab v3 (Pascal VOC), quantised, through LiteRT.

It knows 21 classes and no words: the expression is searched for a word that means one of the classes, and
the class map answers. That is far from understanding, but the masks are a real model's on real images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from refbench.records import Answer
from refbench.storage.files import file_sha256

WORDS = {
    "aeroplane": "plane airplane aeroplane jet",
    "bicycle": "bike bicycle",
    "bird": "bird duck goose chicken parrot",
    "boat": "boat ship canoe",
    "bottle": "bottle",
    "bus": "bus",
    "car": "car van suv taxi truck",
    "cat": "cat kitty kitten",
    "chair": "chair seat",
    "cow": "cow bull calf cattle",
    "diningtable": "table",
    "dog": "dog puppy",
    "horse": "horse pony zebra",
    "motorbike": "motorbike motorcycle scooter",
    "person": "person man woman boy girl guy lady kid child people player dude he she batter catcher male female "
    "umpire baby shirt jacket head face hand",
    "pottedplant": "plant flower",
    "sheep": "sheep lamb",
    "sofa": "sofa couch",
    "train": "train",
    "tvmonitor": "tv monitor screen",
}
SIDE_PX = 513


class DeepLab:
    """One forward pass per image; expressions of one image share its class map."""

    name = "deeplab"

    def __init__(self, folder: Path) -> None:
        model = folder / "deeplabv3_mnv2_pascal_quant.tflite"
        self.weights_sha256 = file_sha256(model)
        self.labels = (folder / "pascal_voc_segmentation_labels.txt").read_text().split()
        self.interpreter = Interpreter(model_path=str(model), num_threads=2)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.output = self.interpreter.get_output_details()[0]["index"]

    def segment(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[Answer]:
        answers = []
        last: Image.Image | None = None
        classes = np.empty((0, 0))
        for image, expression in zip(images, expressions, strict=True):
            if image is not last:
                classes = self._class_map(image)
                last = image
            wanted = self.wanted_class(expression, classes)
            mask = classes == wanted if wanted else np.zeros(classes.shape, dtype=bool)
            answers.append(Answer(mask, no_target=not mask.any()))
        return answers

    def _class_map(self, image: Image.Image) -> np.ndarray:
        resized = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        self.interpreter.set_tensor(self.input, np.asarray(resized, dtype=np.uint8)[None])
        self.interpreter.invoke()
        found = self.interpreter.get_tensor(self.output)[0].astype(np.uint8)
        return np.asarray(Image.fromarray(found).resize((image.width, image.height), Image.Resampling.NEAREST))

    def wanted_class(self, expression: str, classes: np.ndarray) -> int:
        """The class that a word names; without one, the class that covers most of the image; 0 if none."""
        words = set(re.findall(r"[a-z]+", expression.lower()))
        words |= {w[:-1] for w in words if w.endswith("s")}
        for name, known in WORDS.items():
            if words & set(known.split()):
                return self.labels.index(name)
        counts = np.bincount(classes.ravel(), minlength=len(self.labels))
        counts[0] = 0
        return int(counts.argmax()) if counts.any() else 0
