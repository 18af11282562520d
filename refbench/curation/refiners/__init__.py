"""Refiners: what draws a mask anew, given the picture and the coarse mask."""
