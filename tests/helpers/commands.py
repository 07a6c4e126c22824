"""Runs the real command, with settings for a model of a few thousand parameters."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "trainer.max_steps=4",
    ),
    *("data.limit={train: 12, validation: 4, test: 5}", "validation.every_steps=2", "generation.max_new_tokens=12"),
    "score.train_clips=3",
]


def kikitori(*arguments: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the cache folder, without a shell."""
    command = [sys.executable, "-m", "kikitori", *arguments]
    settings = {"KIKITORI_CACHE": str(cache), "WANDB_MODE": "offline", "NO_COLOR": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cache, env={**os.environ, **settings})


def weights(folder: Path) -> "dict[str, Tensor]":
    """The weights of the last checkpoint of a run."""
    import torch

    saved: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return dict(saved["state_dict"])


def interrupt(*words: str, cache: Path, after: Path) -> None:
    """Kills a run as soon as a file is there."""
    environment = {**os.environ, "KIKITORI_CACHE": str(cache), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "kikitori", *words]
    process = subprocess.Popen(
        command, cwd=cache, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not after.exists():
        assert process.poll() is None, "the run has ended before it could be interrupted"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait()
