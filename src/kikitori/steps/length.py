"""The length of a training in optimizer steps, whether it is configured in steps or in epochs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kikitori.optim.schedule import Schedule, check_decay
from kikitori.runs.resume import training_steps
from kikitori.runtime.errors import ConfigError


@dataclass(frozen=True)
class Length:
    """How long a training is.

    steps: optimizer steps. steps_per_epoch: those that read each training clip once. every_steps: between validations.
    """

    steps: int
    steps_per_epoch: int
    every_steps: int

    def facts(self) -> dict[str, float]:
        """The `training` of results.json."""
        return {**asdict(self), "epochs": round(self.steps / self.steps_per_epoch, 3)}


def training_length(config: Mapping[str, Any], clips: int) -> Length:
    """The length that a configuration gives a training on so many clips."""
    per_epoch = -(-clips // config["data"]["global_batch_size"])
    validation = config["validation"]
    # A configuration of an earlier version has no every_epochs.
    every_steps = validation["every_steps"] or max(1, round(validation["every_epochs"] * per_epoch))
    return Length(training_steps(config, clips), per_epoch, every_steps)


def check_schedule(config: Mapping[str, Any], steps: int) -> None:
    """Raises ConfigError for a warm-up or decay that is too long for the training, which `max_epochs` reveals only now.

    `config["optim"]` may be that of an optimizer of the user's own.
    """
    optim = config["optim"]
    warmup = optim.get("warmup_steps")
    if isinstance(warmup, int) and warmup >= steps:
        raise ConfigError(
            f"optim.warmup_steps={warmup}: must be below the {steps} steps of the training; null takes a tenth of "
            "them, at most 500"
        )
    if optim.get("schedule") == "wsd":
        check_decay(Schedule("wsd", warmup, optim.get("decay_steps")), steps)
