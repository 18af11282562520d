"""Refiners from scikit-image, which need neither weights nor OpenCV."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.segmentation import (
    inverse_gaussian_gradient,
    morphological_geodesic_active_contour,
    random_walker,
    slic,
    watershed,
)

from refbench.curation.refiners.base import Box, Refined, core_of, reach_px, unfold
from refbench.curation.surroundings import (
    CLEAR_EDGE,
    BoolArray,
    FloatArray,
    edge_strength,
    lab_of,
    quantised,
    signed_distance,
    strength_on_outline,
    window_of,
)

SEEDS_PX = 2
# Finer than what surroundings are rounded to: stopping forces and shares of walkers are in 0..1.
FINE_PARTS = 65536.0
# How much a pixel of distance weighs against a difference of Lab, in patches of one colour.
COMPACTNESS = 5.0


class RandomWalker:
    """Random walks that avoid edges; a pixel is inside if its walk is likely to end inside (scikit-image).

    Source: Grady, "Random walks for image segmentation", PAMI 2006.
    """

    name = "random-walker"

    def __init__(self, beta: float = 250.0) -> None:
        self.beta = beta

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is high where the probabilities near the outline are far from 0.5."""
        reach = reach_px(mask)
        window = window_of(mask, 3 * reach + 4)
        inside = mask[window]
        distance = signed_distance(inside)
        seeds = np.zeros(inside.shape, np.int32)
        seeds[distance >= reach] = 2
        seeds[core_of(inside, reach)] = 1
        if not (seeds == 2).any():
            raise ValueError("the refiner needs background around the mask as a starting point, but there is none")
        near = seeds == 0
        # Walkers never get past the first seeds: what lies behind them is left out of the equations.
        seeds[~ndimage.binary_dilation(near, iterations=SEEDS_PX)] = -1
        with warnings.catch_warnings():
            # Probabilities a hair outside 0..1 are no harm here.
            warnings.simplefilter("ignore", UserWarning)
            shares = random_walker(
                lab_of(image[window]) / 100, seeds, beta=self.beta, mode="cg_j", tol=1e-3, channel_axis=-1,
                return_full_prob=True,
            )[0]  # fmt: skip
        shares = quantised(shares, FINE_PARTS)
        sure = np.abs(2 * np.clip(shares[near], 0, 1) - 1) if near.any() else np.ones(1)
        found = np.where(near, shares > 0.5, inside)
        return Refined(unfold(found, window, mask.shape), float(sure.mean()))


class ActiveContour:
    """A contour that shrinks from outside until edges stop it (scikit-image).

    Source: Marquez-Neila, Baumela, Alvarez, "A morphological approach to curvature-based evolution", PAMI 2014.
    """

    name = "active-contour"

    def __init__(self, smoothing: int = 1, alpha: float = 1000.0) -> None:
        self.smoothing = smoothing
        self.alpha = alpha

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is near 1 if the outline lies on edges of the image."""
        reach = reach_px(mask)
        window = window_of(mask, 3 * reach + 4)
        inside = mask[window]
        lab = lab_of(image[window]) / 100
        forces = [inverse_gaussian_gradient(lab[..., k], self.alpha, 1.0) for k in range(3)]
        stops = quantised(np.min(forces, axis=0), FINE_PARTS)
        start = signed_distance(inside) < reach // 2 + 0.5
        found = morphological_geodesic_active_contour(
            stops, 2 * reach, init_level_set=start, smoothing=self.smoothing, balloon=-1
        ).astype(bool)
        rim = found & ~ndimage.binary_erosion(found)
        held = float(1 - stops[rim].mean()) if rim.any() else 0.0
        return Refined(unfold(found, window, mask.shape), float(np.clip(held, 0, 1)))


class Watershed:
    """Two floods, from inside and from outside, that meet at the edges of the image (scikit-image).

    Source: Meyer, "Color image segmentation", ICIP 1992.
    """

    name = "watershed"

    def __init__(self, sigma_px: float = 0.8) -> None:
        self.sigma_px = sigma_px

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is the mean edge strength along the outline, relative to a strong edge."""
        reach = reach_px(mask)
        window = window_of(mask, 3 * reach + 4)
        inside = mask[window]
        seeds = np.zeros(inside.shape, np.int32)
        seeds[signed_distance(inside) >= reach] = 2
        seeds[core_of(inside, reach)] = 1
        heights = edge_strength(lab_of(image[window]), self.sigma_px)
        found = watershed(heights, seeds) == 1
        clear = strength_on_outline(heights, found) / CLEAR_EDGE
        return Refined(unfold(found, window, mask.shape), clear)


class Superpixels:
    """Small patches of similar colour, which are included or excluded as a whole (scikit-image).

    A patch near the outline is included if its colour is more frequent deep inside the mask than around it. Far from
    the outline, the mask is not changed. Source of the patches: Achanta et al., "SLIC superpixels", PAMI 2012.
    """

    name = "superpixels"

    def __init__(self, patch_px: int = 16) -> None:
        self.patch_px = patch_px

    def refine(self, image: NDArray[np.uint8], mask: BoolArray, box: Box) -> Refined:
        """See `Refiner`; the confidence is the share of superpixels that the source mask does not cut in two."""
        reach = reach_px(mask)
        window = window_of(mask, 3 * reach + 4)
        inside = mask[window]
        lab = lab_of(image[window])
        smooth = quantised(ndimage.gaussian_filter(lab, (0.5, 0.5, 0)))
        # It stretches what it is given to 0..1; distances of colours are to count in Lab.
        compactness = COMPACTNESS / max(float(np.ptp(smooth)), 1.0)
        patches = slic(
            smooth, n_segments=max(50, inside.size // self.patch_px), compactness=compactness, convert2lab=False,
            start_label=0,
        )  # fmt: skip
        numbers = np.arange(int(patches.max()) + 1)
        colours = np.stack([ndimage.mean(lab[..., k], patches, numbers) for k in range(3)], axis=1)
        share = ndimage.mean(inside, patches, numbers)
        distance = ndimage.mean(signed_distance(inside), patches, numbers)
        taken = share > 0.5
        sure_in, sure_out = (share == 1) & (distance < -reach / 2), (share == 0) & (distance > reach / 2)
        open_ = np.abs(distance) < reach
        if sure_in.sum() >= 5 and sure_out.sum() >= 5:
            nearer = _nearest(colours, colours[sure_in]) < _nearest(colours, colours[sure_out])
            taken = np.where(open_, nearer, taken)
        whole = float(np.mean((share == 0) | (share == 1)))
        return Refined(unfold(taken[patches], window, mask.shape), whole)


def _nearest(colours: FloatArray, known: FloatArray) -> FloatArray:
    """For each colour, the mean distance to the five nearest colours in `known`; float (N,)."""
    distances, _ = cKDTree(known).query(colours, k=5)
    return quantised(distances.mean(axis=1))
