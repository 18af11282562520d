"""Dataset builders: from original files, or from nothing, to one Parquet table per split."""
