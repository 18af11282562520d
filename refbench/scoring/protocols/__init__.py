"""Scoring rules: they turn the integer counts of each sample into the metrics of a split."""
