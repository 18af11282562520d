"""Masks as run-length codes, and what is counted of pairs of them."""
