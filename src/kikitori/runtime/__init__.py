"""Processes, signals, files, paths, errors."""
