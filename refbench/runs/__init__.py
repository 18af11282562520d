"""Runs: an adapter over a split, in this process, in several, or on a Ray cluster; the bytes are the same."""
