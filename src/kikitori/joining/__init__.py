"""Clips joined into whole windows for training: what a window holds, its labels and its samples."""
