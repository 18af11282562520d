"""Checks, each a small class whose docstring is its rule."""
