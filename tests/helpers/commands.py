"""Runs the real command, with settings for a model of a few thousand parameters."""

import os
import subprocess
import sys
from pathlib import Path

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
