"""Segmenters behind one method; see `refbench.adapters.base`."""
