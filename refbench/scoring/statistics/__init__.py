"""Statistics of metrics that are ratios of sums over samples."""
