"""Pages: templates and assets of the static ones, and the local server of the review page."""
