"""Records which code produced a run: package versions and the git commit."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kikitori.runtime.paths import HERE

PACKAGES = (
    *("kikitori", "torch", "torchaudio", "transformers", "pytorch-lightning", "hydra-core", "datasets", "jiwer"),
    *("sudachipy", "sudachidict-core", "soundfile", "wandb"),
)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in PACKAGES}


def git_state() -> dict[str, Any] | None:
    """The commit of the package's checkout, and whether src or conf differ from it; None elsewhere."""
    checkout = HERE.resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None  # installed inside another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "src", "conf"))}
    except (OSError, subprocess.CalledProcessError):
        return None
