"""Refiners: what draws a mask again, given the image and the coarse mask."""
