"""Turns audio files into 16 kHz samples. Imports no other package."""
