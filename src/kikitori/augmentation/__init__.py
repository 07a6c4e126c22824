"""Augmentation of training clips: changes of a waveform, and which of them a clip gets in a step."""
