"""Dataset builders, which convert original files or generated data to one Parquet table per split."""
