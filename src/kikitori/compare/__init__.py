"""Comparison of runs: leaderboard, tables in four formats, and the HTML page."""
