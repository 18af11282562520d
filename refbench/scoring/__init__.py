"""Scores: from masks to integer counts, from counts to metrics with intervals."""
