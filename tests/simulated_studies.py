"""Benchmarks whose truth is known: images with a difficulty, expressions that share it, objects of all sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refbench.scoring.statistics.bootstrap import ImageSums, sums_by_image

# As many as RefCOCO testA has.
IMAGES = 750


@dataclass(frozen=True)
class Study:
    """Expressions of one simulated split: their images, and pixels of intersection and union of two systems."""

    images: np.ndarray
    union: np.ndarray
    intersections: tuple[np.ndarray, np.ndarray]

    def sums(self, system: int = 0, clustered: bool = True) -> ImageSums:
        """Cumulative and mean IoU, summed by image or, to see it fail, as if every expression had its own."""
        both = self.intersections[system]
        tops = np.stack([both, both / self.union])
        bottoms = np.stack([self.union, np.ones(len(both))])
        groups = self.images if clustered else np.arange(len(both))
        return sums_by_image(tops, bottoms, groups, int(groups.max()) + 1, 0.0)


# Objects asked about in an image, and how many of RefCOCO val's 1,500 images have so many.
OBJECTS, IMAGES_WITH = range(1, 10), np.array([94, 901, 269, 147, 47, 22, 12, 3, 5]) / 1500


def simulate(random: np.random.Generator, images: int = IMAGES, gain: float = 0.0) -> Study:
    """A split like RefCOCO val: numbers of objects and sentences, and the spread of sizes within and between images,
    are those of its annotations. An image is easy or hard for both systems, which find the object in so many of its
    sentences, and draw it with an IoU around 0.8; `gain` is added to every IoU of the second."""
    of_image = np.repeat(np.arange(images), random.choice(OBJECTS, images, p=IMAGES_WITH))
    of_object = np.repeat(np.arange(len(of_image)), random.choice([2, 3], len(of_image), p=[0.16, 0.84]))
    where = of_image[of_object]
    level = random.beta(3, 1.2, images)[where]
    drawn = np.clip(0.8 + random.normal(0, 0.08, len(of_image)), 0.3, 0.9)[of_object]
    size = 10.7 + random.normal(0, 0.4, images)[of_image] + random.normal(0, 0.55, len(of_image))
    union = np.exp(size)[of_object]
    shares = [
        np.where(random.random(len(where)) < level, drawn + random.normal(0, 0.02, len(where)), 0.02) for _ in range(2)
    ]
    return Study(where, union, (shares[0] * union, (shares[1] + gain) * union))


def truth() -> np.ndarray:
    """Cumulative and mean IoU of the population, from a study that is large enough."""
    random = np.random.default_rng(99)
    parts = [simulate(random, 200_000).sums() for _ in range(10)]
    top = sum(p.top.sum(axis=1) / p.scale_top for p in parts)
    bottom = sum(p.bottom.sum(axis=1) / p.scale_bottom for p in parts)
    return top / bottom
