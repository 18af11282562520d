"""Datasets: built, downloaded, verified, compared and exported."""
