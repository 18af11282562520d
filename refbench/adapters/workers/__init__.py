"""Segmenters that run in their own environments. refbench does not import this code; other interpreters run it."""
