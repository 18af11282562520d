"""Protocols: they convert the integer counts of each sample to the metrics of a split."""
