"""Whisper: loading, log-Mel features, the processor, windows."""
