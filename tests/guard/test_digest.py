"""What was read before is used again only if all that it depends on is the same."""

from dataclasses import replace

import torch

from kikitori.guard.digest import reading_digest
from kikitori.guard.recordings import READINGS, Recording
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window


def test_a_digest_depends_on_weights_windows_settings_and_recordings(micro: Whisper) -> None:
    recording = Recording("clips", "a", torch.zeros(100), "文", "ja")
    digests = [reading_digest(micro, [recording], READINGS)]
    assert digests[0] == reading_digest(micro, [replace(recording, samples=torch.zeros(100))], READINGS)
    digests.append(reading_digest(micro, [recording], READINGS[:1]))
    for change in ({"text": "章"}, {"samples": torch.ones(100)}, {"name": "b"}, {"language": "en"}):
        digests.append(reading_digest(micro, [replace(recording, **change)], READINGS))
    micro.configure_generation(7, 1)
    digests.append(reading_digest(micro, [recording], READINGS))
    micro.set_window(Window((0.5,), 0.1))
    digests.append(reading_digest(micro, [recording], READINGS))
    with torch.no_grad():
        micro.model.model.decoder.layer_norm.bias[3] += 1e-6
    digests.append(reading_digest(micro, [recording], READINGS))
    micro.max_tokens_per_s = 5.0
    digests.append(reading_digest(micro, [recording], READINGS))
    assert len(set(digests)) == len(digests)
