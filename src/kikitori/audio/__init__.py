"""Audio files to 16 kHz samples. Imports no other package."""
