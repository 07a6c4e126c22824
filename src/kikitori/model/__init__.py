"""Whisper models: loading, log-Mel features, the processor, windows."""
