"""Caveats of several protocols: what the originals use and stored masks cannot reproduce."""

from __future__ import annotations

STORED_MASK = "the original resizes and thresholds scores; a stored mask is taken as it is"
RESIZED = "the original predicts on its canvas; here the stored mask is resized to it by nearest neighbour"
PADDED = "on several GPUs the original counts the images that pad the last batch twice"
FLOAT32_SUMS = "the original sums in float32"
