"""Moondream Segmentation on your own GPU, by the engine of the package `moondream` (2.6 or newer).

Options: model=moondream3.1-9B-A2B. The engine draws a coarse outline and refines it; if a package of the refiner is
missing, it silently returns the coarse one. The first outputs are checked: if none was refined, the worker reports this
and stops, unless refined=any is given. Outputs are sent as paths; refbench rasterises them.
"""

import io
import json

import numpy as np
from worker_sdk import Answer, StopRun, serve

LOOKED_AT = 8
FIELDS = ("bbox", "parse_error", "finish_reason")


class Moondream(object):
    name = "moondream-local"
    max_batch = 1

    def __init__(self, config, device):
        if not device.startswith("cuda"):
            raise ValueError("the engine of Moondream needs a GPU: --device cuda:0")
        import moondream

        self.client = moondream.photon(config.get("model", "moondream3.1-9B-A2B"))
        self.must_refine = config.get("refined", "must") != "any"
        self.coarse = 0
        self.refined = 0

    def segment(self, images, expressions):
        return [self._one(image, expression) for image, expression in zip(images, expressions)]

    def _one(self, image, expression):
        found = self._asked(image, expression)
        path = found.get("svg_path") or found.get("path") or ""
        refined = bool(path) and "coarse_path" in found and path != found["coarse_path"]
        self.refined += refined
        self.coarse += bool(path) and not refined
        if self.must_refine and not self.refined and self.coarse >= LOOKED_AT:
            raise StopRun(
                "the engine refines nothing, or does not report it: its refiner needs cv2, resvg below 0.2 and "
                "pypotrace, not potracer; -o refined=any accepts coarse outlines"
            )
        said = {"path": path, "refined": refined}
        said.update((k, found[k]) for k in FIELDS if found.get(k) is not None)
        nothing = np.zeros((image.height, image.width), bool)
        return Answer(nothing, note="" if refined or not path else "a coarse outline", raw=json.dumps(said))

    def _asked(self, image, expression):
        """The engine's raw output: the client's own method returns only the final path, not the coarse one."""
        file = io.BytesIO()
        image.save(file, "PNG")
        settings = self.client._settings({"temperature": 0.0})
        result = self.client._run(
            self.client._model.segment(image=file.getvalue(), object=expression, settings=settings)
        )
        return result.output["segments"][0]


if __name__ == "__main__":
    serve(Moondream)
