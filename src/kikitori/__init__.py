"""kikitori (聞き取り): fine-tune Whisper on speech, Japanese first.

The names below are imported when they are first used, so that `import kikitori` and the command line start fast.
Models: `load_whisper`, `build_whisper`, `Whisper`. Data: `CommonVoice`, `Demo`, `Manifest`, `Hub`, `SpeechDataModule`,
`Augmentation`, `Joining`. Training with Lightning: `WhisperModule`, `adamw`, `adamw8bit`, `muon`, `ddp`; adapters:
`Lora`, `AdaLora`. Results: `transcribe`, `score`, `find_runs`.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kikitori.adapters.settings import AdaLora, Lora
    from kikitori.augmentation.settings import Augmentation
    from kikitori.data.datamodule import CommonVoice, Demo, Hub, Manifest, SpeechDataModule
    from kikitori.inference.transcribe import transcribe
    from kikitori.joining.settings import Joining
    from kikitori.metrics.error_rates import score
    from kikitori.model.loading import build_whisper, load_whisper
    from kikitori.model.whisper import Whisper
    from kikitori.optim.optimizers import adamw, adamw8bit, muon
    from kikitori.runs.reader import find_runs
    from kikitori.runs.wandb_logger import WandbRunLogger
    from kikitori.sweeps.pruning import OptunaPruning
    from kikitori.training.lightning_module import WhisperModule
    from kikitori.training.trainer import ddp

__version__ = "0.1.0"

# Where each public name is defined; configurations name these, so that modules can move without breaking saved runs.
_EXPORTS = {
    "Augmentation": "kikitori.augmentation.settings",
    "AdaLora": "kikitori.adapters.settings",
    "Lora": "kikitori.adapters.settings",
    "CommonVoice": "kikitori.data.datamodule",
    "Demo": "kikitori.data.datamodule",
    "Hub": "kikitori.data.datamodule",
    "Joining": "kikitori.joining.settings",
    "Manifest": "kikitori.data.datamodule",
    "SpeechDataModule": "kikitori.data.datamodule",
    "Whisper": "kikitori.model.whisper",
    "build_whisper": "kikitori.model.loading",
    "load_whisper": "kikitori.model.loading",
    "WhisperModule": "kikitori.training.lightning_module",
    "adamw": "kikitori.optim.optimizers",
    "adamw8bit": "kikitori.optim.optimizers",
    "muon": "kikitori.optim.optimizers",
    "ddp": "kikitori.training.trainer",
    "transcribe": "kikitori.inference.transcribe",
    "score": "kikitori.metrics.error_rates",
    "find_runs": "kikitori.runs.reader",
    "WandbRunLogger": "kikitori.runs.wandb_logger",
    "OptunaPruning": "kikitori.sweeps.pruning",
}

__all__ = [
    "AdaLora",
    "Augmentation",
    "CommonVoice",
    "Demo",
    "Hub",
    "Joining",
    "Lora",
    "Manifest",
    "OptunaPruning",
    "SpeechDataModule",
    "WandbRunLogger",
    "Whisper",
    "WhisperModule",
    "adamw",
    "adamw8bit",
    "build_whisper",
    "ddp",
    "find_runs",
    "load_whisper",
    "muon",
    "score",
    "transcribe",
]

# The variables below are read when torch is imported, so kikitori is imported first; settings of the user's stay.
# By default MKL and OpenMP may use fewer threads while the CPU is busy, on which the last digits of a sum depend.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
# OpenMP's threads spin while they wait for each other, which slows a busy CPU down up to 50 times. With this shorter
# spin a quiet CPU is a seventh slower.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
