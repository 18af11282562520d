"""Refiners: they propose a new mask, given the image and the coarse mask."""
