"""The static site: leaderboard, run, comparison, dataset and system pages, which work without a server."""
