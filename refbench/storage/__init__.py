"""Files: datasets, predictions, images, and what a result depends on."""
