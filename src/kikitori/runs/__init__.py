"""A run's folder: written, resumed and read."""
