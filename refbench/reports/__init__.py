"""What people read: comparisons, diagnoses, leaderboard tables and pages."""
