"""A digest of all that a reading of recordings depends on, by which a resumed run finds what was read before."""

import json
from collections.abc import Sequence
from hashlib import sha256

import torch

from kikitori.guard.recordings import Recording
from kikitori.model.whisper import Whisper


def reading_digest(whisper: Whisper, recordings: Sequence[Recording], readings: Sequence[str]) -> str:
    """The digest of a model's weights, windows and generation settings, and of the recordings with their texts."""
    digest = sha256()
    for name, weight in whisper.model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = {**whisper.recipe, "max_tokens_per_s": whisper.max_tokens_per_s}
    del settings["trained_on"]
    settings["window"] = whisper.processor.window.as_plain()
    digest.update(json.dumps([settings, list(readings)], sort_keys=True, default=str).encode())
    for recording in recordings:
        digest.update(f"\0{recording.set}\0{recording.name}\0{recording.text}\0{recording.language}".encode())
        digest.update(recording.samples.contiguous().numpy().tobytes())
    return digest.hexdigest()
