"""Losses of a small model, and an adapter that is no longer a fresh one."""

import torch
from torch import Tensor

from kikitori.model.whisper import Whisper, encode
from kikitori.training.loss import clip_losses


def losses(whisper: Whisper) -> Tensor:
    """The losses of two clips in a window of 1 s."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 80, 100, generator=generator)
    labels = torch.randint(0, 250, (2, 9), generator=generator)
    return clip_losses(whisper.model, encode(whisper.model, features), labels)


def disturb(whisper: Whisper) -> None:
    """Changes what is trained, as training does."""
    with torch.no_grad():
        for weight in whisper.model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
