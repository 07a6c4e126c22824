"""A command's configuration, for tests that call its pipeline in their own process."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from kikitori.config.overrides import settle
from kikitori.runtime.paths import CONF


def composed(command: str, words: Sequence[str]) -> DictConfig:
    """What `kikitori COMMAND WORDS` composes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, list(words))
    settle(cfg, list(words))
    return cfg
