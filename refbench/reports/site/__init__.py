"""The static site: leaderboard, run, comparison, dataset and system pages that work offline and from the file system."""
