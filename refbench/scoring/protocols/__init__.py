"""Scoring rules: from integer counts a sample to metrics of a split."""
