"""Segmenters in environments of their own. refbench imports nothing of it: other interpreters run it."""
