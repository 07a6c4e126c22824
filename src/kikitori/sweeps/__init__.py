"""Sweeps: the local launcher, the search with Optuna, and their tables."""
