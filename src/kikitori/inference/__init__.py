"""Turns encoder outputs into text, and recordings of any length into text."""
