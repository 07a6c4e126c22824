"""Encoder outputs to text, and recordings of any length to text."""
