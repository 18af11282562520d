"""Where the points go: the kind of each error, and slices of a split."""
